"""The op that turns finished shards, or a training, into one result."""

import re

import dagster as dg

from mloc_dagster.errors import MlocError
from mloc_dagster.executors import OpenTask, ShardReport, archive_folder, open_task, worker_name
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.io import IO_MANAGER_KEY, AggregatedTask
from mloc_dagster.results import (
    ARCHIVES_NAME,
    aggregate_rows,
    read_training,
    write_training_result,
)
from mloc_dagster.schema import TrainingSpec


@dg.op(
    name="mloc_aggregate",
    ins={"reports": dg.In(list[ShardReport], description="One per shard.")},
    out=dg.Out(
        AggregatedTask,
        io_manager_key=IO_MANAGER_KEY,
        description="The task whose responses are complete.",
    ),
    description="Checks that every row of the plan is there, and writes responses.json.",
)
def aggregate_op(reports: list[ShardReport]) -> AggregatedTask:
    """Aggregates a task; see `results.aggregate`."""
    opened = open_task(reports[0].task_id)
    try:
        rows = _aggregate(opened, reports)
    except MlocError as error:
        raise as_dagster(error) from error
    return AggregatedTask(
        task_id=reports[0].task_id,
        node=opened.task.name,
        rows=rows,
        shard_seconds=tuple(
            None if report.rows_resumed else report.seconds - report.load_seconds
            for report in sorted(reports, key=lambda each: each.shard)
        ),
    )


def _aggregate(opened: OpenTask, reports: list[ShardReport]) -> int:
    """Writes what becomes of the shards; returns the number of rows."""
    metadata = {"template": opened.record.template_name, "node": opened.task.name}
    if isinstance(opened.task.spec, TrainingSpec):
        return _training_result(opened, metadata)
    return aggregate_rows(
        opened.folder,
        opened.plan(),
        model=opened.model_name,
        revision=opened.model_revision,
        worker_id=worker_name(),
        started_at=min(report.started_at for report in reports),
        error_budget=opened.spec.error_budget,
        rates=opened.rates,
        limits=opened.spec.budget,
        evaluation=opened.spec.evaluation,
        metadata=metadata,
        report=opened.report(),
        conclude=opened.conclude,
    ).rows


def _training_result(opened: OpenTask, metadata: dict[str, str]) -> int:
    """Writes `responses.json` of a training, and an archive if somebody needs one."""
    folder = opened.folder
    summary = read_training(folder)
    archive = None
    if summary.final and archive_wanted(opened):
        archive = archive_folder(folder, summary.final, f"{ARCHIVES_NAME}/{summary.final}.zip")
    write_training_result(
        folder, summary, worker_id=worker_name(), archive=archive, metadata=metadata
    )
    return summary.dataset_size


def archive_wanted(opened: OpenTask) -> bool:
    """Returns whether the template lists `archives`, or a later stage reads the archive's place."""
    if any(each.split("/")[0] == ARCHIVES_NAME for each in opened.task.spec.output.artifacts):
        return True
    node = re.escape(opened.task.name)
    document = str(opened.record.template)
    return re.search(rf"\b{node}\.result\.final_\w+_archive_", document) is not None
