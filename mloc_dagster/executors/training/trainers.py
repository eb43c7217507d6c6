"""The trainers of TRL's methods: SFT, DPO, KTO, reward model, GRPO and RLOO."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.training.base import Row, TrainingOutcome, TrainingRun
from mloc_dagster.executors.training.rewards import Scorer, build_scorer
from mloc_dagster.executors.training.tool_use import (
    CALLS_COLUMN,
    FailureCount,
    answer_of,
    calls_of,
)
from mloc_dagster.executors.training.trl_run import (
    build_trainer,
    config_of,
    dataset_of,
    log_left_out,
    train_with,
)
from mloc_dagster.schema import (
    ANY_TRAINING,
    DpoSpec,
    GrpoSpec,
    KtoSpec,
    LoraSftSpec,
    OnlineSpec,
    RewardSpec,
    RlooSpec,
    SftSpec,
    TaskType,
    TrainingResult,
)

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
    if any(row.get("tools") for row in rows):
        form = (*form, "tools")
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


class DpoTrainer:
    """`trl.DPOTrainer`: rows with `prompt`, `chosen` and `rejected`."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return _train(run, columns=("prompt", "chosen", "rejected"), answers=("chosen", "rejected"))


class KtoTrainer:
    """`trl.KTOTrainer`: rows with `prompt`, `completion` and `label`, true for a good answer."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return _train(run, columns=("prompt", "completion", "label"), answers=("completion",))


def _train(
    run: TrainingRun, *, columns: tuple[str, ...], answers: tuple[str, ...]
) -> TrainingOutcome:
    config = config_of(run)
    trainer = build_trainer(
        run, config, dataset_of(run.rows, columns), ref_model=_reference(run, config)
    )
    limit = config.max_length
    left_out = len(run.rows) - len(trainer.train_dataset)
    log_left_out(run, left_out, f"left out: the prompt alone fills max_length={limit} tokens")
    log_left_out(run, _cut_rows(trainer, answers), f"cut to max_length={limit} tokens")
    return train_with(trainer, run, left_out=left_out)


def _reference(run: TrainingRun, config: Any) -> Any:
    """Returns a copy of the model as it is now; None where TRL has something better.

    TRL would load the reference from where the model came from, which are other weights when the
    task starts from a checkpoint. With an adapter the reference is the model with the adapter as it
    was; precomputed, it needs no model; a model in shards cannot be copied.
    """
    adapted = hasattr(run.model, "peft_config")
    sharded = bool(config.deepspeed or config.fsdp)
    if adapted or sharded or config.precompute_ref_log_probs:
        return None
    return copy.deepcopy(run.model).requires_grad_(requires_grad=False)


def _cut_rows(trainer: Any, answers: tuple[str, ...]) -> int:
    limit = trainer.args.max_length
    if limit is None:
        return 0
    return sum(
        len(row["prompt_ids"]) + max(len(row[f"{answer}_ids"]) for answer in answers) > limit
        for row in trainer.train_dataset
    )


DPO = TaskType(name="dpo", spec=DpoSpec, executor=DpoTrainer, kinds=("DPOTask", ANY_TRAINING))
KTO = TaskType(name="kto", spec=KtoSpec, executor=KtoTrainer, kinds=("KTOTask", ANY_TRAINING))


class RewardTrainer:
    """`trl.RewardTrainer`: rows with `chosen` and `rejected`, mostly with their `prompt`."""

    model_kind: Literal["causal_lm", "classifier"] = "classifier"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        config = config_of(run)
        asked = ("prompt",) if run.rows and "prompt" in run.rows[0] else ()
        dataset = dataset_of(run.rows, (*asked, "chosen", "rejected"))
        trainer = build_trainer(run, config, dataset)
        left_out = len(run.rows) - len(trainer.train_dataset)
        log_left_out(run, left_out, f"left out: longer than max_length={config.max_length} tokens")
        return train_with(trainer, run, left_out=left_out)


REWARD = TaskType(
    name="reward", spec=RewardSpec, executor=RewardTrainer, kinds=("RewardTask", ANY_TRAINING)
)


TRLS_OWN = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"})
"""What TRL passes to reward functions besides the rows' columns."""


class GrpoTrainer:
    """`trl.GRPOTrainer`: rows with `prompt`; the other columns go to the reward functions."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return train_with(online_trainer(run), run)


class RlooTrainer:
    """`trl.RLOOTrainer`: rows with `prompt`; the other columns go to the reward functions."""

    model_kind: Literal["causal_lm", "classifier"] = "causal_lm"

    def train(self, run: TrainingRun) -> TrainingOutcome:
        """Trains `run.model` in place."""
        return train_with(online_trainer(run), run)


def online_trainer(run: TrainingRun) -> Any:
    """Returns the `trl.GRPOTrainer` or `trl.RLOOTrainer` of a run.

    Raises:
        TerminalError: If an option is wrong, or a reward cannot be built.
    """
    config = config_of(run)
    columns = list(dict.fromkeys(name for row in run.rows for name in row))
    if run.tools and CALLS_COLUMN in columns:
        raise DataError(
            f"the column {CALLS_COLUMN!r} is where rewards find the model's own calls: give yours "
            "another name"
        )
    dataset = dataset_of(run.rows, columns)
    spec = cast("OnlineSpec", run.spec)
    scorer = build_scorer(spec, config.device, run.hooks.log)
    failures = FailureCount()
    parts = {"tools": failures.watched(run.tools)} if run.tools else {}
    rewards = [reward_function(scorer, with_calls=bool(run.tools))]
    trainer = build_trainer(run, config, dataset, reward_funcs=rewards, **parts)
    if run.tools:
        failures.told_by(trainer)
    _set_reference(trainer)
    return trainer


def reward_function(scorer: Scorer, *, with_calls: bool = False) -> Callable[..., list[float]]:
    """Returns a scorer in the form that TRL calls; it logs as `rewards/score`.

    Args:
        scorer: What scores.
        with_calls: Whether it hears of calls, in a column of their own.
    """

    def score(*, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float]:
        columns = {name: values for name, values in kwargs.items() if name not in TRLS_OWN}
        if with_calls:
            columns[CALLS_COLUMN] = [calls_of(each) for each in completions]
        return scorer.score(prompts, [text_of(each) for each in completions], columns)

    return score


def text_of(completion: str | Sequence[Any]) -> str:
    """Returns a completion's text: of a chat, what the assistant says in the end."""
    return completion if isinstance(completion, str) else answer_of(completion)


def _set_reference(trainer: Any) -> None:
    """Makes the reference the model as it is now.

    TRL loads the reference from where the model came from, which are other weights when the task
    starts from a checkpoint. A model in shards is left alone.
    """
    if trainer.ref_model is None or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return
    unwrap = trainer.accelerator.unwrap_model
    unwrap(trainer.ref_model).load_state_dict(unwrap(trainer.model).state_dict())


GRPO = TaskType(name="grpo", spec=GrpoSpec, executor=GrpoTrainer, kinds=("GRPOTask", ANY_TRAINING))
RLOO = TaskType(name="rloo", spec=RlooSpec, executor=RlooTrainer, kinds=("RLOOTask", ANY_TRAINING))
