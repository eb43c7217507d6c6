"""The op that turns finished shards into one result."""

import hashlib

import dagster as dg

from mloc_dagster.errors import MlocError
from mloc_dagster.executors.open_task import OpenTask, open_task
from mloc_dagster.executors.shard_run import ShardReport, worker_name
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.metadata import responses_metadata
from mloc_dagster.ops.plan_metadata import plan_metadata
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.ops.training_result import training_output
from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.aggregate import aggregate
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.task import TrainingSpec


@dg.op(
    name="aggregate",
    ins={"reports": dg.In(list[ShardReport], description="One per shard.")},
    out=dg.Out(TaskRef, description="The task whose responses are complete."),
    description="Checks that every row of the plan is there, and writes responses.json.",
)
def aggregate_op(context: dg.OpExecutionContext, reports: list[ShardReport]) -> dg.Output[TaskRef]:
    """Aggregates a task; see `results.aggregate`."""
    opened = open_task(reports[0].task_id)
    if isinstance(opened.task.spec, TrainingSpec):
        return training_output(opened)
    plan = opened.plan()
    try:
        summary = aggregate(
            opened.folder,
            plan,
            model=opened.model_name,
            revision=opened.model_revision,
            worker_id=worker_name(),
            started_at=min(report.started_at for report in reports),
            error_budget=opened.spec.error_budget,
            rates=opened.rates,
            metadata={"template": opened.record.template_name, "node": opened.task.name},
        )
    except MlocError as error:
        raise as_dagster(error) from error
    return dg.Output(
        TaskRef(task_id=plan.task_id, node=opened.task.name, rows=summary.rows),
        metadata={
            **responses_metadata(summary, opened.folder.url),
            **plan_metadata(plan, summary.usage, reports),
        },
        data_version=dg.DataVersion(data_version(opened, plan)),
    )


def data_version(opened: OpenTask, plan: Plan) -> str:
    """Returns what identifies the responses: their input, their task and their seed."""
    spec = opened.spec.model_dump(mode="json", include={"model", "inference", "pooling", "echo"})
    known = canonical_json([plan.data_version, plan.seed, spec])
    return hashlib.sha256(known.encode()).hexdigest()[:16]
