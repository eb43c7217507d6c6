"""The ops of a run that small tasks share: plan, and hand out what was computed."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import dagster as dg

from mloc_dagster.errors import InputError, MlocError
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, publish
from mloc_dagster.executors import (
    MemberResults,
    ShardReport,
    cancel_requested,
    miss_of,
    node_of,
    open_task,
    run_shard,
    start_batch,
    start_of,
)
from mloc_dagster.fleet import model_cache
from mloc_dagster.ops.failures import as_dagster, retry_or_fail
from mloc_dagster.ops.io import IO_MANAGER_KEY, TaskRef
from mloc_dagster.ops.viewer_link import batch_metadata
from mloc_dagster.planning import Shard
from mloc_dagster.results import (
    Batch,
    Member,
    MemberOutcome,
    Outcome,
    cancelled_members,
    delete_rows,
    open_store,
    read_batch,
    read_outcome,
    read_rows,
    write_outcome,
)

NODE = "batch"

# Thousands of small files: threads that write them at once only take Python's lock from each other.
_ONE_AT_A_TIME = threading.Lock()

_ENDS = {
    "DONE": TaskEventType.TASK_SUCCEEDED,
    "DEAD": TaskEventType.TASK_DEAD_LETTERED,
    "CANCELLED": TaskEventType.TASK_CANCELLED,
}


class BatchConfig(dg.Config):
    """Which batch a run computes; the dispatcher says so, nobody else has batches."""

    batch_id: str = ""


@dg.op(
    out=dg.DynamicOut(
        Shard, io_manager_key=IO_MANAGER_KEY, description="A range of the batch's rows."
    ),
    description="Puts the rows of small tasks one after another, and cuts them into shards.",
)
def plan_batch(
    context: dg.OpExecutionContext, config: BatchConfig
) -> Iterator[dg.DynamicOutput[Shard]]:
    """Yields the shards of a batch; see `executors.batch_task`."""
    try:
        batch = _batch_of(config)
        opened, plan = start_batch(batch, context.run_id)
    except MlocError as error:
        raise as_dagster(error) from error
    context.log.info(
        f"{len(batch.members)} tasks with {plan.rows} rows in {len(plan.shards)} shards;"
        f" their rows are computed in {opened.folder.url}"
    )
    for member in batch.members:
        publish(_event(context, member, TaskEventType.TASK_STARTED, start_of(member)))
    for shard in plan.shards:
        yield dg.DynamicOutput(shard, mapping_key=shard.key)


def _batch_of(config: BatchConfig) -> Batch:
    if not config.batch_id:
        raise InputError("small tasks come over the API; launching this job by hand has no tasks")
    return read_batch(open_store(), config.batch_id)


@dg.op(
    ins={"shard": dg.In(Shard)},
    out=dg.Out(
        ShardReport, io_manager_key=IO_MANAGER_KEY, description="What computing the shard took."
    ),
    description="Computes the rows of one shard that are not there yet.",
)
def batch_shard(context: dg.OpExecutionContext, shard: Shard) -> ShardReport:
    """Computes one shard, without a word of it: what is computed here is nobody's task."""
    opened, attempt = open_task(shard.task_id), context.retry_number + 1
    try:
        with opened.reach.applied():
            return run_shard(
                opened.folder,
                shard.task_id,
                opened.spec,
                opened.plan(),
                shard,
                attempt=attempt,
                cache=model_cache(),
                cancelled=cancel_requested,
            )
    except Exception as error:
        context.log.warning(f"attempt {attempt} at shard {shard.key} failed: {error}")
        raise retry_or_fail(error, attempt, opened.spec.retries) from error


@dg.op(
    ins={"reports": dg.In(list[ShardReport], description="One per shard.")},
    out=dg.Out(
        TaskRef, io_manager_key=IO_MANAGER_KEY, description="The rows that were computed together."
    ),
    description="Gives each task its own responses, files and manifest.",
)
def hand_out(
    context: dg.OpExecutionContext, config: BatchConfig, reports: list[ShardReport]
) -> dg.Output[TaskRef]:
    """Writes every member's results, and what became of each."""
    store, batch = open_store(), _batch_of(config)
    with _ONE_AT_A_TIME:
        outcome = read_outcome(store, config.batch_id) or _give_all(batch, context.run_id, reports)
    write_outcome(store, config.batch_id, outcome)
    delete_rows(store, batch)
    members = {each.task_id: each for each in batch.members}
    for each in outcome.tasks:
        kind = _ENDS[each.state]
        payload = Payload(rows=each.rows, errors=each.errors)
        publish(_event(context, members[each.task_id], kind, payload, error=each.error or None))
        miss = miss_of(members[each.task_id], datetime.now(UTC))
        if miss is not None and each.state != "CANCELLED":
            publish(_event(context, members[each.task_id], TaskEventType.TASK_SLO_MISSED, miss))
    return _output(batch, outcome, reports)


def _give_all(batch: Batch, run_id: str, reports: list[ShardReport]) -> Outcome:
    folder = open_task(batch.task_id).folder
    store = open_store().unsettled()
    cancelled = cancelled_members(store, batch.batch_id)
    began = min(each.started_at for each in reports)
    ended = max(each.finished_at for each in reports)
    rows = {row.index: row for row in read_rows(folder)}
    giver = MemberResults(store, batch, run_id, began, ended, rows)
    given = [
        MemberOutcome(task_id=each.task_id, state="CANCELLED")
        if each.task_id in cancelled
        else giver.give(each)
        for each in batch.members
    ]
    store.settle()  # once for all of them, and before any manifest says that they are there
    pairs = zip(batch.members, given, strict=True)
    outcome = Outcome(tasks=tuple(giver.finish(member, each) for member, each in pairs))
    store.settle()
    return outcome


def _output(batch: Batch, outcome: Outcome, reports: list[ShardReport]) -> dg.Output[TaskRef]:
    states = [each.state for each in outcome.tasks]
    rows = sum(each.rows for each in batch.members)
    return dg.Output(
        TaskRef(task_id=batch.task_id, node=NODE, rows=rows),
        metadata={
            "tasks": len(states),
            "done": states.count("DONE"),
            "failed": states.count("DEAD"),
            "cancelled": states.count("CANCELLED"),
            "dagster/row_count": sum(each.rows for each in outcome.tasks),
            "errors": sum(each.errors for each in outcome.tasks),
            "tokens": sum(each.completion_tokens for each in reports),
            "task_ids": dg.MetadataValue.json([each.task_id for each in outcome.tasks]),
            **batch_metadata(batch.batch_id),
        },
    )


def _event(
    context: dg.OpExecutionContext,
    member: Member,
    kind: TaskEventType,
    payload: Payload,
    error: str | None = None,
) -> TaskEvent:
    return TaskEvent(
        type=kind,
        task_id=member.task_id,
        run_id=context.run_id,
        node=node_of(member),
        error=error,
        payload=payload,
    )
