"""Supervised fine-tuning: the model learns to write the answers, and only these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.training.base import Row, TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.trl_run import (
    build_trainer,
    config_of,
    dataset_of,
    log_left_out,
    train_with,
)
from mloc_dagster.schema.result import TrainingResult
from mloc_dagster.schema.task import LoraSftSpec, SftSpec
from mloc_dagster.schema.task_type import ANY_TRAINING, TaskType

FORMS = (("text",), ("messages",), ("prompt", "completion"))
"""The columns of a row, by form."""


class SftTrainer:
    """`trl.SFTTrainer`, for `sft` and `lora_sft`.

    Trained on: of `prompt` and `completion` the completion with its end; of `messages` the
    assistant's turns with their ends; of `text` all of it.
    """

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        trainer = sft_trainer(run)
        left_out = 0
        if not trainer.args.packing:
            left_out = len(run.rows) - len(trainer.train_dataset)
        limit = trainer.args.max_length
        log_left_out(run, left_out, f"left out: no answer within max_length={limit} tokens")
        log_left_out(
            run, _full_rows(trainer), f"fill max_length={limit} tokens, and were cut if longer"
        )
        return train_with(trainer, run, left_out=left_out)


def sft_trainer(run: TrainingRun) -> Any:
    """Returns the `trl.SFTTrainer` of a run.

    Raises:
        DataError: If the rows are of no form that it knows.
        TerminalError: If messages have no chat template, or an option is wrong.
    """
    form = _form(run.rows)
    rows, overrides = run.rows, dict[str, Any]()
    if form == ("messages",):
        form, rows, overrides = _conversations(run)
    return build_trainer(run, config_of(run, overrides), dataset_of(rows, form))


def _form(rows: Sequence[Row]) -> tuple[str, ...]:
    if not rows:
        raise DataError("there are no rows to train on")
    for form in FORMS:
        if all(column in rows[0] for column in form):
            return form
    have = ", ".join(map(repr, rows[0]))
    raise DataError(f"rows have {have}; expected text, or messages, or prompt and completion")


def _conversations(run: TrainingRun) -> tuple[tuple[str, ...], Sequence[Row], dict[str, Any]]:
    """Returns form, rows and options that train on the assistant's turns only."""
    extra = run.spec.training.model_extra or {}
    for number, row in enumerate(run.rows, start=1):
        if not any(message["role"] == "assistant" for message in row["messages"]):
            raise DataError(f"row {number}: no message is the assistant's; nothing to train on")
    if "assistant_only_loss" in extra or "chat_template_path" in extra:
        return ("messages",), run.rows, {}
    if run.tokenizer.chat_template is None:
        raise TerminalError(
            "messages need a chat template, and the model has none; name one in "
            "training.chat_template_path, or train on texts"
        )
    if _marks_answers(run.tokenizer):
        return ("messages",), run.rows, {"assistant_only_loss": True}
    run.hooks.log(
        "the chat template does not mark the assistant's turns: "
        "of each conversation the last answer is trained on, the turns before it are context"
    )
    return ("prompt", "completion"), [_last_answer(row) for row in run.rows], {}


def _marks_answers(tokenizer: Any) -> bool:
    """Tells if TRL can see which tokens are the assistant's, the end of each turn among them."""
    from trl.chat_template_utils import (
        get_training_chat_template,
        has_generation_markers,
        is_chat_template_stop_token_trained,
    )

    template = None
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:  # not one of the templates that TRL has a marked copy of
            return False
    return is_chat_template_stop_token_trained(tokenizer, chat_template=template)


def _last_answer(row: Row) -> Row:
    messages = row["messages"]
    last = max(place for place, each in enumerate(messages) if each["role"] == "assistant")
    return {**row, "prompt": messages[:last], "completion": [messages[last]]}


def _full_rows(trainer: Any) -> int:
    """Counts the rows that reach `max_length`: TRL cuts before anybody can count what is longer."""
    args, rows = trainer.args, trainer.train_dataset
    if args.max_length is None:
        return 0
    if not args.packing:
        return sum(len(ids) >= args.max_length for ids in rows["input_ids"])
    if args.packing_strategy != "bfd":  # the others go on in the next sequence
        return 0
    return sum(length >= args.max_length for packed in rows["seq_lengths"] for length in packed)


SFT = TaskType(
    name="sft",
    spec=SftSpec,
    executor=SftTrainer,
    kinds=("SFTTask", ANY_TRAINING),
    result=TrainingResult,  # all weights, never an adapter
)
LORA_SFT = TaskType(
    name="lora_sft", spec=LoraSftSpec, executor=SftTrainer, kinds=("LoRASFTTask", ANY_TRAINING)
)
