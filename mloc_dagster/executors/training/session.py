"""One attempt at a training, within its own process: load, measure, train, measure, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import msgspec

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.task_start import task_executor
from mloc_dagster.executors.training.base import (
    Hooks,
    Metrics,
    Row,
    Trainer,
    TrainingOutcome,
    TrainingRun,
)
from mloc_dagster.executors.training.messages import (
    Evaluated,
    Finished,
    Message,
    TrainingJob,
    finite,
)
from mloc_dagster.net import Reach
from mloc_dagster.schema import reporters
from mloc_dagster.tracking import open_runs


def train(job: TrainingJob, hooks: Hooks, say: Callable[[Message], None]) -> Finished:
    """Trains as the job says.

    Args:
        job: What to do.
        hooks: What the trainer tells.
        say: Takes what the model was worth before and after.

    Raises:
        TaskCancelled: If the task was asked to stop.
        TerminalError: If another attempt would end the same, a want of memory included.
        TransientError: If it may not.
    """
    from mloc_dagster.executors.training.memory_estimate import is_out_of_memory

    try:
        with Reach(job.origin).applied(), _tracked(job):
            return _train(job, hooks, say)
    except Exception as error:
        if is_out_of_memory(error):
            raise TerminalError(_too_large(job, error)) from error
        raise


def _tracked(job: TrainingJob) -> AbstractContextManager[None]:
    """Opens the runs of the trackers that the template names, before anything is loaded."""
    if job.tracked is None or not is_first_rank():
        return nullcontext()
    return open_runs(reporters(job.spec.training), job.tracked, job.logs)


def _train(job: TrainingJob, hooks: Hooks, say: Callable[[Message], None]) -> Finished:
    from mloc_dagster.executors.training.tool_use import opened_tools

    with opened_tools(job.spec, hooks.log) as tools:
        return _train_with(job, hooks, say, tools)


def _train_with(
    job: TrainingJob,
    hooks: Hooks,
    say: Callable[[Message], None],
    tools: Sequence[Callable[..., str]],
) -> Finished:
    from mloc_dagster.executors.training.devices import seed_everything
    from mloc_dagster.executors.training.examples import rendered_rows
    from mloc_dagster.executors.training.memory_estimate import estimate_of
    from mloc_dagster.executors.training.spread import is_spread
    from mloc_dagster.executors.training.tool_use import let_it_call
    from mloc_dagster.executors.training.weight_files import save_final

    spec, spread = job.spec, is_spread(job.spec)
    if (estimate := estimate_of(spec, job.start_from)) is not None:
        hooks.log(f"memory: {estimate.text()}")
    trainer = _trainer(spec.task_type)
    seed_everything(spec.training.seed)
    model, tokenizer = _load(job, trainer, hooks)
    if tools:
        let_it_call(tokenizer, spec, hooks.log)
    revision = _revision(job)
    given = read_rows(job.rows)
    rows = rendered_rows(given, spec.data, spec.method, tokenizer, hooks.log)
    measure = _measure(job, model, tokenizer, hooks, tools, everywhere=spread)

    def tell(when: Literal["before", "after"]) -> None:
        if measure is not None and (when == "after" or job.before is None):
            say(Evaluated(when, dict(measure())))

    run = TrainingRun(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        rows=rows,
        output_dir=job.checkpoints,
        resume_from=job.resume_from,
        hooks=hooks,
        evaluate=measure if spec.evaluation is not None and spec.evaluation.every else None,
        tools=tools,
    )
    if spread:
        outcome, weights = _train_spread(run, trainer, tell)
    else:
        tell("before")
        outcome, weights = trainer.train(run), None
        tell("after")
    keeps = spec.training.save_model and is_first_rank()
    final = save_final(model, tokenizer, job.folder, weights) if keeps else ""
    return _finished(outcome, model, final, revision)


def _train_spread(
    run: TrainingRun, trainer: Trainer, tell: Callable[[Literal["before", "after"]], None]
) -> tuple[TrainingOutcome, dict[str, Any] | None]:
    """Trains weights that are spread over the processes; returns them in the first process.

    All processes measure and gather: each of them has a part of the model.
    """
    from mloc_dagster.executors.training.spread import SpreadRun

    given = {each.name: getattr(run, each.name) for each in fields(TrainingRun)}
    spread = SpreadRun(**given, begin=lambda: tell("before"))
    outcome = trainer.train(spread)
    tell("after")
    gather = spread.weights.gather
    keeps = run.spec.training.save_model and gather is not None
    return outcome, gather() if keeps and gather is not None else None


def is_first_rank() -> bool:
    """Returns whether this process is the one that saves and is heard."""
    return os.environ.get("RANK", "0") == "0"


def read_rows(path: Path) -> list[Row]:
    """Reads rows that the worker wrote."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    with path.open("rb") as lines:
        return [decode(line) for line in lines]


def _trainer(task_type: str) -> Trainer:
    found = task_executor(task_type)
    if not isinstance(found, Trainer):
        raise TerminalError(f"what is registered for the task type {task_type!r} trains nothing")
    return found


def _load(job: TrainingJob, trainer: Trainer, hooks: Hooks) -> tuple[Any, Any]:
    from mloc_dagster.executors.training.loading import load_classifier, load_policy

    load = load_classifier if trainer.model_kind == "classifier" else load_policy
    return load(job.spec, job.start_from, hooks.log)


def _measure(
    job: TrainingJob,
    model: Any,
    tokenizer: Any,
    hooks: Hooks,
    tools: Sequence[Callable[..., str]],
    *,
    everywhere: bool,
) -> Callable[[], Metrics] | None:
    evaluation = job.spec.evaluation
    if evaluation is None or job.eval_rows is None or not (everywhere or is_first_rank()):
        return None
    from mloc_dagster.executors.training.evaluation import evaluate
    from mloc_dagster.executors.training.examples import rendered_rows, with_form_of
    from mloc_dagster.executors.training.tool_use import most_turns_of

    data = with_form_of(evaluation.data, job.spec.data)
    rows: Sequence[Row] = rendered_rows(read_rows(job.eval_rows), data, job.spec.method, tokenizer)
    return lambda: evaluate(
        model,
        tokenizer,
        rows,
        evaluation,
        tools=tools,
        most_turns=most_turns_of(job.spec),
        log=hooks.log,
    )


def _revision(job: TrainingJob) -> str:
    """Returns which weights the training began with: the hub's commit, or a hash of the files."""
    from mloc_dagster.executors.model_source import folder_revision, hub_commit, model_place

    if job.start_from is not None:
        return folder_revision(str(job.start_from))
    source = job.spec.model.source
    return hub_commit(source) or folder_revision(model_place(source))


def _finished(outcome: TrainingOutcome, model: Any, final: str, revision: str) -> Finished:
    return Finished(
        steps=outcome.steps,
        metrics=finite(outcome.metrics),
        history=[finite(each) for each in outcome.history],
        dataset_size=outcome.dataset_size,
        device=str(model.device),
        model_revision=revision,
        final=final,
    )


def _too_large(job: TrainingJob, error: Exception) -> str:
    from mloc_dagster.executors.training.memory_estimate import estimate_of, explain_oom

    return explain_oom(error, estimate_of(job.spec, job.start_from), job.spec)
