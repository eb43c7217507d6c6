"""Sending a task's figures to experiment trackers, once its result is complete."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import dagster as dg

from mloc_dagster.executors import OpenTask, ShardLog
from mloc_dagster.planning import Plan
from mloc_dagster.redaction import redact_urls
from mloc_dagster.results import read_summary, read_training
from mloc_dagster.schema import Tracker, TrainingSpec, option_of
from mloc_dagster.tracking import FIGURES, Report, Sent, TrackedRun, send, sending_folder


def tracked_run(opened: OpenTask, plan: Plan) -> TrackedRun:
    """Returns what trackers are told of a task."""
    record, node = opened.record, opened.task.name
    metadata = cast("Mapping[str, Any]", record.template.get("metadata") or {})
    labels = cast("Mapping[str, str]", metadata.get("labels") or {})
    spec = opened.task.spec
    given = option_of(spec, "run_name") if isinstance(spec, TrainingSpec) else None
    rows = _responses(opened)
    tags = {
        "template": record.template_name,
        "node": node,
        "task_type": record.task_type,
        "results": opened.folder.url,
        **({} if rows is None else {"responses": f"{opened.folder.url}/{rows}"}),
        **{f"label.{name}": value for name, value in labels.items()},
    }
    params = {"model": opened.model_name, "dataset": plan.source, "data_version": plan.data_version}
    return TrackedRun(
        task_id=record.task_id,
        name=node if node == record.template_name else f"{record.template_name}/{node}",
        given_name=None if given is None else str(given),
        params={name: redact_urls(value) for name, value in params.items()},
        tags={name: redact_urls(value) for name, value in tags.items()},
    )


def _responses(opened: OpenTask) -> str | None:
    """Returns the file of a task's rows; None where it leaves no Parquet."""
    rows = not isinstance(opened.task.spec, TrainingSpec)
    return "responses.parquet" if rows and "parquet" in opened.task.spec.output.formats else None


def report_scores(context: dg.OpExecutionContext, opened: OpenTask) -> dict[str, dg.MetadataValue]:
    """Sends what a task was measured at to the trackers that its template names.

    A tracker that cannot be reached is no failure of the task.

    Args:
        context: Takes a warning where a tracker cannot be reported to.
        opened: The task; its result is complete.

    Returns:
        Metadata: where the figures are, or why they are not there.
    """
    trains = isinstance(opened.task.spec, TrainingSpec)
    evaluation = opened.training_spec.evaluation if trains else opened.spec.evaluation
    if evaluation is None or not evaluation.report_to:
        return {}
    figures, at = _figures(opened)
    if not figures:
        return {}
    found: dict[str, dg.MetadataValue] = {}
    plan = opened.plan()
    log = ShardLog(opened.folder, plan.shards[0])
    for tracker in evaluation.report_to:
        sent = _send(opened, plan, tracker, figures, at)
        if sent.error:
            text = f"evaluation.report_to: {tracker} did not get the figures: {sent.error}"
            context.log.warning(text)
        else:
            text = f"evaluation.report_to: {tracker} has the figures: {sent.place}"
        log.line(text)
        shown = f"failed: {sent.error}" if sent.error else sent.place
        found[f"report_to/{tracker}"] = dg.MetadataValue.text(shown)
    log.save()
    return found


def _figures(opened: OpenTask) -> tuple[Mapping[str, float], datetime]:
    """Returns the figures by name, and when they were computed."""
    if isinstance(opened.task.spec, TrainingSpec):
        summary = read_training(opened.folder)
        before = {f"before/{name}": value for name, value in (summary.before or {}).items()}
        return {**before, **(summary.after or {})}, summary.finished_at
    rows = read_summary(opened.folder)
    return {} if rows.scores is None else rows.scores.metrics, rows.finished_at


def _send(
    opened: OpenTask, plan: Plan, tracker: Tracker, figures: Mapping[str, float], at: datetime
) -> Sent:
    named = {f"{FIGURES}/{name}": value for name, value in figures.items()}
    with sending_folder() as folder:
        run = tracked_run(opened, plan)
        sent = send(Report(tracker=tracker, run=run, figures=named, at=at, folder=folder))
        for name, file in sent.files.items():
            opened.folder.write_bytes(name, file.read_bytes())
    return sent
