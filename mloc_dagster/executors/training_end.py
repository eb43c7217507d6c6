"""The end of a training: what it came to, and whether its model is handed on."""

from __future__ import annotations

from datetime import UTC, datetime

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.open_task import OpenTask
from mloc_dagster.executors.shard_run import worker_name
from mloc_dagster.executors.training_plan import bad_row_count
from mloc_dagster.executors.training_run import Attempt
from mloc_dagster.results.training_summary import TrainingSummary, write_training
from mloc_dagster.schema.gate import parse_gate
from mloc_dagster.schema.training import Evaluation


def conclude(opened: OpenTask, attempt: Attempt) -> TrainingSummary:
    """Writes `training.json` after the attempt that ended well.

    Raises:
        TerminalError: If the gate names what was not measured.
    """
    finished, spec = attempt.finished, opened.training_spec
    if finished is None:
        raise TerminalError("the training has not ended")
    gate, passed = judge(spec.evaluation, attempt.before, attempt.after)
    plan = opened.plan()
    summary = TrainingSummary(
        task_id=opened.record.task_id,
        task_type=spec.task_type,
        model=opened.model_name,
        model_revision=finished.model_revision,
        source=plan.source,
        data_version=plan.data_version,
        dataset_size=finished.dataset_size,
        bad_rows=bad_row_count(opened.folder),
        steps=finished.steps,
        resumed_step=attempt.resumed_step,
        seconds=round(attempt.seconds, 3),
        metrics=finished.metrics,
        history=tuple(finished.history),
        before=attempt.before,
        after=attempt.after,
        gate=gate,
        passed=passed,
        final=finished.final,
        device=finished.device,
        worker=worker_name(),
        started_at=attempt.started_at,
        finished_at=datetime.now(UTC),
    )
    write_training(opened.folder, summary)
    return summary


def judge(
    evaluation: Evaluation | None,
    before: dict[str, float] | None,
    after: dict[str, float] | None,
) -> tuple[str, bool]:
    """Returns what the gate says in words, and whether the model may pass.

    Raises:
        TerminalError: If the gate names what was not measured.
    """
    if evaluation is None or evaluation.gate is None:
        return "", True
    try:
        result = parse_gate(evaluation.gate).check(before or {}, after or {})
    except KeyError as error:
        measured = ", ".join(after or {}) or "nothing"
        raise TerminalError(
            f"evaluation.gate {evaluation.gate!r} asks for {error.args[0]!r}, and what was "
            f"measured is {measured}"
        ) from error
    return result.text, result.passed
