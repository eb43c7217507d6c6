"""The door for trainers: implement `Trainer`, register it as a task type.

A trainer works in a child process of the worker, started afresh for each attempt. It gets a loaded
model and rows in TRL's dataset formats, and changes the model in place. Loading, resuming,
evaluating, saving, and talking to the worker are done around it (`child`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from mloc_dagster.schema import TrainingSpec

Row = Mapping[str, Any]
"""An example in TRL's format: `text`, or `messages`, or `prompt` and `completion`, or `prompt`,
`chosen` and `rejected`, or `prompt`, `completion` and `label`, or `prompt` with any other columns.
Prompts, completions, chosen and rejected are texts, or lists of `{"role", "content"}`."""

Metrics = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a trainer may do to the outside. Only the process of rank 0 is heard.

    Attributes:
        progress: Takes the optimiser steps done, how many there will be, and what was logged
            there: `loss`, `learning_rate`, `epoch`, `num_tokens`, …; names are the trainer's.
        log: One line for the task's own log file.
        cancelled: Look at this between steps; when true, raise `TaskCancelled`.
        checkpoint: Takes the folder of a checkpoint whose files are all written, and its step. The
            folder is then complete in the sense of `checkpoints`, and may be resumed from.
    """

    progress: Callable[[int, int, Metrics], None]
    log: Callable[[str], None]
    cancelled: Callable[[], bool]
    checkpoint: Callable[[Path, int], None]


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Everything a trainer needs.

    Attributes:
        spec: The task's spec.
        model: The model to train, on its device; a `PeftModel` when the spec has `lora`; a
            sequence classifier with one logit for the task type `reward`.
        tokenizer: Its tokenizer, with a pad token that is not the end token.
        rows: The training rows, in the order of the input, already in chat form where the chat
            template is used.
        output_dir: Where checkpoints go, as `checkpoint-<step>`; local, there already.
        resume_from: A complete checkpoint of this very task to go on from; None to begin.
        hooks: What to tell.
        evaluate: Measures the model as it is now, when the spec's `evaluation.every` asks for it.
        tools: What the model may call, open as long as the attempt runs; they wait for a result,
            and raise nothing.
    """

    spec: TrainingSpec
    model: Any
    tokenizer: Any
    rows: Sequence[Row]
    output_dir: Path
    resume_from: Path | None
    hooks: Hooks
    evaluate: Callable[[], Metrics] | None = None
    tools: Sequence[Callable[..., str]] = ()


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a training came to.

    Attributes:
        steps: Optimiser steps, those before a resume included.
        metrics: Closing figures, such as `train_loss`; names are the trainer's.
        history: What was logged, in order, with `step` in each entry; before a resume, too.
        dataset_size: Rows that it trained on.
    """

    steps: int
    metrics: Metrics
    history: Sequence[Metrics] = field(default_factory=list)
    dataset_size: int = 0


@runtime_checkable
class Trainer(Protocol):
    """Trains one task type."""

    model_kind: Literal["causal_lm", "classifier"]
    """Which head the model is loaded with."""

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TerminalError: If another attempt would end the same.
            TransientError: If it may not.
        """
        ...
