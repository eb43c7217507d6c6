"""Between a worker and its training process: the job file, and messages of one JSON line each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from mloc_dagster.net import Origin
from mloc_dagster.schema import CHECKPOINTS_NAME, TOOL_SECRETS, TrainingSpec, spec_of
from mloc_dagster.tracking import TrackedRun


def _of_its_type(value: Any) -> Any:
    return spec_of(value) if isinstance(value, Mapping) else value


JOB_NAME = "job.json"
LOGS_NAME = "logs"
OUTBOX_NAME = "outbox"


class TrainingJob(BaseModel):
    """One attempt at a training.

    Attributes:
        task_id: The task.
        spec: What to do, with all references resolved.
        folder: Where the process may write: checkpoints, logs, the final weights. Local.
        rows: JSON lines in TRL's formats.
        eval_rows: Rows to measure on; None without an evaluation.
        start_from: Weights to start from instead of the model's own: a folder.
        resume_from: A checkpoint of this task to go on from: a folder.
        origin: Where the task comes from, which decides what it may read and contact.
        before: What an earlier attempt measured before it began; None to measure now.
        tracked: What trackers are told of the task; None if they are told nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    spec: Annotated[SerializeAsAny[TrainingSpec], BeforeValidator(_of_its_type)]
    folder: Path
    rows: Path
    eval_rows: Path | None = None
    start_from: Path | None = None
    resume_from: Path | None = None
    origin: Origin = "local"
    before: dict[str, float] | None = None
    tracked: TrackedRun | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the trainer puts its checkpoints, and takes the oldest away."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def logs(self) -> Path:
        """What is written here ends in the task's own `logs`."""
        return self.folder / LOGS_NAME

    @property
    def outbox(self) -> Path:
        """Where complete checkpoints wait for the worker, which the trainer knows nothing of."""
        return self.folder / OUTBOX_NAME

    def write(self) -> Path:
        """Writes `job.json` into the job's folder; returns its path."""
        path = self.folder / JOB_NAME
        # What the template does not say is left to the trainer, whose defaults are others.
        path.touch(mode=0o600)  # secrets of tools are written out in it
        path.write_text(
            self.model_dump_json(by_alias=True, exclude_unset=True, context=TOOL_SECRETS)
        )
        return path


PIPE_VARIABLE = "MLOC_TRAINING_PIPE"
"""Tells each process which of its files its messages go to."""

LIFELINE_VARIABLE = "MLOC_TRAINING_LIFELINE"
"""Tells each process which of its files closes when the worker is gone."""

Figures = dict[str, float]


class Progress(msgspec.Struct, tag="progress", frozen=True):
    """Optimiser steps are done.

    Attributes:
        step: How many.
        total: How many there will be; 0 while that is unknown.
        metrics: What was logged there.
    """

    step: int
    total: int
    metrics: Figures


class LogLine(msgspec.Struct, tag="log", frozen=True):
    """Something for the task's own log file."""

    text: str


class Saved(msgspec.Struct, tag="checkpoint", frozen=True):
    """A checkpoint is complete.

    Attributes:
        path: Its folder, which is the worker's from now on.
        step: Optimiser steps done.
    """

    path: str
    step: int


class Evaluated(msgspec.Struct, tag="evaluation", frozen=True):
    """The model was measured outside of the training's steps."""

    when: Literal["before", "after"]
    metrics: Figures


class Finished(msgspec.Struct, tag="finished", frozen=True):
    """The training is done.

    Attributes:
        steps: Optimiser steps, those of earlier attempts included.
        metrics: Closing figures.
        history: What was logged, in order.
        dataset_size: Rows that it trained on.
        device: What it ran on.
        model_revision: Which weights it began with.
        final: The folder with the final weights, below the job's folder; empty if none were kept.
    """

    steps: int
    metrics: Figures
    history: list[Figures]
    dataset_size: int
    device: str = ""
    model_revision: str = ""
    final: str = ""


class Failed(msgspec.Struct, tag="failed", frozen=True):
    """The training cannot go on.

    Attributes:
        error: The name of one of our errors.
        message: What it says.
        at: When, on the machine's clock that only goes forward: the first failure of several
            processes is the cause of the others.
    """

    error: str
    message: str
    at: float = 0.0


def finite(figures: Mapping[str, float]) -> Figures:
    """Returns the figures that are numbers: JSON has no others."""
    return {name: float(each) for name, each in figures.items() if math.isfinite(each)}


Message = Progress | LogLine | Saved | Evaluated | Finished | Failed

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Message).decode


def encode_line(message: Message) -> bytes:
    """Returns a message as a line."""
    return _encode(message) + b"\n"


def decode_line(line: bytes) -> Message:
    """Returns the message of a line.

    Raises:
        msgspec.MsgspecError: If it is none.
    """
    return _decode(line)
