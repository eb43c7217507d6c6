"""The op that starts a task and hands out its shards."""

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import dagster as dg

from mloc_dagster.compile import fill_partition, merge_overrides
from mloc_dagster.errors import MlocError
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, publish
from mloc_dagster.executors import OpenTask, start_task
from mloc_dagster.fleet import CONTENT_TAG
from mloc_dagster.net import Origin
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.given_rows import rows_document
from mloc_dagster.ops.io import IO_MANAGER_KEY, REFERENCE, TaskRef
from mloc_dagster.ops.run_tags import workflow_of
from mloc_dagster.ops.viewer_link import viewer_address
from mloc_dagster.planning import Shard

RETRY_ERRORS_TAG = ".dagster/mloc_retry_errors"


class PlanConfig(dg.Config):
    """What the graph's config mapping hands to the op; people see `assets.launch_config`."""

    template: str
    node: str
    job: str
    overrides: str = "{}"


ROWS = "rows"
"""The op's input that takes the rows of an asset."""


@cache
def plan_op(inputs: int, *, rows: bool = False, deps: int = 0) -> dg.OpDefinition:
    """Returns the op that plans a task.

    One input for each upstream task, and no list of inputs: Dagster knows an asset by the op's
    input that reads it, and would take the last of a list for all of them.

    Args:
        inputs: Tasks of the same template that it depends on.
        rows: Whether another asset holds its rows.
        deps: Assets that it waits for and does not read.
    """
    given = {ROWS: dg.In(metadata={REFERENCE: True})} if rows else {}
    parts = (f"{inputs}", "rows" * rows, f"deps_{deps}" * (deps > 0))

    @dg.op(
        name="_".join(["mloc_plan", *filter(None, parts)]),
        ins={
            **{f"upstream_{each}": dg.In(TaskRef) for each in range(inputs)},
            **{f"dep_{each}": dg.In(dg.Nothing) for each in range(deps)},
            **given,
        },
        out=dg.DynamicOut(Shard, io_manager_key=IO_MANAGER_KEY, description="A range of rows."),
        description="Makes the task durable, spools its input once and cuts it into shards.",
    )
    def plan(
        context: dg.OpExecutionContext, config: PlanConfig, **inputs: Any
    ) -> Iterator[dg.DynamicOutput[Shard]]:
        given = inputs.pop(ROWS, None)
        return plan_task(context, config, list(inputs.values()), given)

    return plan


def plan_task(
    context: dg.OpExecutionContext, config: PlanConfig, upstream: list[TaskRef], rows: object
) -> Iterator[dg.DynamicOutput[Shard]]:
    """Yields one shard per dynamic output; see `executors.task_start`.

    Args:
        context: Of the step.
        config: Which task of which template.
        upstream: Tasks of the same template that it depends on.
        rows: What an asset holds that its rows come from; None if the template says where they are.
    """
    partition = context.partition_key if context.has_partition_key else None
    try:
        document = merge_overrides(
            json.loads(config.template), config.node, json.loads(config.overrides)
        )
        document = fill_partition(document, partition)
        if rows is not None:
            place = f"{context.run_id}/rows/{config.job}"
            document = rows_document(document, rows, place)
        opened, task_plan = start_task(
            document,
            config.node,
            workflow_id=_workflow_in(context.run, config.job),
            run_id=context.run_id,
            upstream={each.node: each.task_id for each in upstream},
            origin=origin_of(context.run),
            retry_errors=retries_errors(context.run),
            partition=partition,
        )
    except MlocError as error:
        raise as_dagster(error) from error
    page = viewer_address(task_plan.task_id)
    context.log.info(
        f"{task_plan.rows} rows from {task_plan.source} in {len(task_plan.shards)} shards;"
        f" results in {opened.folder.url}" + (f", shown at {page}" if page else "")
    )
    publish(
        TaskEvent(
            type=TaskEventType.TASK_STARTED,
            task_id=task_plan.task_id,
            run_id=context.run_id,
            node=config.node,
            payload=_start_of(opened, task_plan.rows),
        )
    )
    for shard in task_plan.shards:
        yield dg.DynamicOutput(shard, mapping_key=shard.key)


def _start_of(opened: OpenTask, rows: int) -> Payload:
    slo = opened.task.spec.slo
    if slo is None:
        return Payload(rows=rows)
    due = opened.record.submitted_at + timedelta(seconds=slo.seconds)
    return Payload(rows=rows, slo_s=slo.seconds, due=due)


def origin_of(run: dg.DagsterRun) -> Origin:
    """Returns where the template of a run came from; whatever starts it again changes nothing."""
    return "api" if CONTENT_TAG in run.tags else "local"


def retries_errors(run: dg.DagsterRun) -> bool:
    """Whether a run computes rows again that ended with an error."""
    return run.tags.get(RETRY_ERRORS_TAG) == "true"


def workflow_id(run: dg.DagsterRun) -> str:
    """Returns the id that the tasks of a run share."""
    return workflow_of(run.run_id, run.tags)


def _workflow_in(run: dg.DagsterRun, job: str) -> str:
    """Returns the id that the tasks of one template share in a run.

    A run that is not of the template's own job may hold other templates, too.
    """
    shared = workflow_id(run)
    return shared if run.job_name == job else f"{shared}-{job}"
