"""Making the Dagster runs that the ledger planned, in fair order, and launching them.

A run's id is in the ledger before there is a run. Whatever ends the dispatcher in between, the
next one makes the same run: each step here may be done again.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus, JobDefinition

from mloc_dagster.assets import JOB, batch_run_config, fleet_tags_of, job_name
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.dispatch.submitted_location import keep_document, kept_template, pointer_of
from mloc_dagster.errors import TerminalError
from mloc_dagster.executors import task_id_for, task_record
from mloc_dagster.fleet import (
    CONTENT_TAG,
    LIBRARY,
    CodePointer,
    Jobs,
    LaunchRunContext,
    ReconstructableRepository,
    job_origin,
)
from mloc_dagster.ledger import Ledger, PlannedRun, TaskEntry
from mloc_dagster.ops import RETRY_ERRORS_TAG, SUBMITTED_TAG, USER_TAG, WORKFLOW_TAG
from mloc_dagster.recent_templates import remember_template
from mloc_dagster.results import RECORD_NAME, Batch, Member, open_store, write_batch, write_record
from mloc_dagster.services import LIBRARY_LOCATION, SUBMITTED_LOCATION, DagsterRunAlreadyExists
from mloc_dagster.tasks import find_workflows, launcher_of, retry_run


class FairQueue[ItemT]:
    """Gives each owner the same share: nobody waits for more than the others' next item each.

    An item's tag is where its owner's last one ended, and never before the queue's clock, which is
    the tag of what was taken last. The lowest tag goes first, the oldest of equal ones.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, ItemT]] = []
        self._ends: dict[str, int] = {}
        self._clock = 0
        self._places = count()

    def add(self, item: ItemT, *, owner: str, cost: int) -> None:
        """Adds an item that takes so much of its owner's share."""
        tag = max(self._clock, self._ends.get(owner, 0))
        self._ends[owner] = tag + cost
        heapq.heappush(self._waiting, (tag, next(self._places), item))

    def take(self) -> ItemT | None:
        """Returns the item whose turn it is; None without any."""
        if not self._waiting:
            return None
        self._clock, _, item = heapq.heappop(self._waiting)
        if not self._waiting:
            self._ends.clear()  # who comes next finds nobody to wait for
        return item


class Preparing:
    """A thread that hands runs over, whichever owner's turn it is.

    It is one because Dagster composes the graphs of all threads on one stack.

    Args:
        hand_over: Makes a run and gives it to the fleet; twice is once.
    """

    def __init__(self, hand_over: Callable[[PlannedRun], None]) -> None:
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._queue: FairQueue[PlannedRun] = FairQueue()
        self._known: set[str] = set()
        self._ready: list[tuple[PlannedRun, Exception | None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mloc-preparing")

    def add(self, planned: PlannedRun, owner: str) -> None:
        """Has a run made; one that is being made already stays where it is."""
        with self._lock:
            if planned.run_id in self._known:
                return
            self._known.add(planned.run_id)
            self._queue.add(planned, owner=owner, cost=len(planned.task_ids))
        self._pool.submit(self._next)

    def ready(self) -> list[tuple[PlannedRun, Exception | None]]:
        """Returns which runs have been made since the last call, or why one could not be."""
        with self._lock:
            found, self._ready = self._ready, []
            self._known -= {planned.run_id for planned, _ in found}
        return found

    def close(self) -> None:
        """Ends the thread after the run that it is making; the others are still in the ledger."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> None:
        with self._lock:
            planned = self._queue.take()
        if planned is None:
            return
        failed: Exception | None = None
        try:
            self._hand_over(planned)
        except Exception as error:  # noqa: BLE001 (whoever looks for what is ready decides)
            failed = error
        with self._lock:
            self._ready.append((planned, failed))


_API = "API"
"""Who launched what came over it, in the run list; the task's owner is a tag of its own."""

BATCH_TAG = ".dagster/mloc_batch"
"""Marks the run of a batch; its value is how many tasks it had when it was planned."""

# Two, so that a batch does not wait for the job of a template that is being built.
_LIBRARY_JOBS, _SUBMITTED_JOBS = Jobs(), Jobs()


class Unwanted(Exception):
    """All that a run is for was cancelled before it was made."""


def hand_over(instance: dg.DagsterInstance, ledger: Ledger, planned: PlannedRun) -> None:
    """Makes a planned run, unless it is there, and gives it to the run workers; twice is once.

    Raises:
        Unwanted: If its tasks were cancelled and it is not there yet.
        InputError: If there is nothing to run.
        TransientError: If Redis, the database or the store is away.
    """
    run = instance.get_run_by_id(planned.run_id) or _created(instance, ledger, planned)
    if run.status is DagsterRunStatus.NOT_STARTED:
        event = dg.DagsterEvent(
            event_type_value=dg.DagsterEventType.RUN_STARTING.value, job_name=run.job_name
        )
        instance.report_dagster_event(event, run_id=run.run_id)
        run = instance.get_run_by_id(planned.run_id) or run
    if not run.is_finished:
        # Neither the launcher nor the fleet looks at the workspace, which only the UI has.
        launcher_of(instance).launch_run(LaunchRunContext(run, workspace=None))


def _created(instance: dg.DagsterInstance, ledger: Ledger, planned: PlannedRun) -> DagsterRun:
    try:
        return _create(instance, ledger, planned)
    except DagsterRunAlreadyExists:
        # A dispatcher that has lost its lead may not have noticed yet.
        found = instance.get_run_by_id(planned.run_id)
        if found is None:
            raise
        return found


def _create(instance: dg.DagsterInstance, ledger: Ledger, planned: PlannedRun) -> DagsterRun:
    entries = ledger.tasks(planned.task_ids)
    tasks = [entries[each] for each in planned.task_ids]
    # Tasks of a workflow stop together; of a batch each is another's.
    if (all if planned.workflow_id is None else any)(each.cancelling for each in tasks):
        raise Unwanted
    if planned.workflow_id is None:
        return _create_batch(instance, ledger, planned, tasks)
    known = find_workflows(instance, [planned.workflow_id]).get(planned.workflow_id)
    if known is not None and known.latest.run_id == planned.run_id:
        return known.latest  # made by a dispatcher that has lost its lead and not noticed yet
    # What is done and has failed rows is run once more as a whole; rows that are there stay.
    if known is not None and known.latest.status is not DagsterRunStatus.SUCCESS:
        return retry_run(
            instance, planned.workflow_id, failed_rows=planned.retry_rows, run_id=planned.run_id
        )
    return _create_first(instance, ledger, planned, planned.workflow_id)


def _create_first(
    instance: dg.DagsterInstance, ledger: Ledger, planned: PlannedRun, workflow_id: str
) -> DagsterRun:
    compiled = _compiled(ledger, workflow_id)
    remember_template(compiled, submitted=True)
    entries = ledger.workflow(workflow_id)
    _keep_records(compiled, planned, entries)
    pointer = pointer_of(compiled.content_hash)
    job = _SUBMITTED_JOBS.job(pointer, job_name(compiled))
    submitted = entries[0].submitted_at.timestamp()
    tags = {
        **job.tags,
        USER_TAG: _API,
        WORKFLOW_TAG: workflow_id,
        CONTENT_TAG: compiled.content_hash,
        SUBMITTED_TAG: f"{submitted:.3f}",
    }
    if planned.retry_rows:
        tags[RETRY_ERRORS_TAG] = "true"
    return _run(instance, job, pointer, planned.run_id, job.run_config or {}, tags)


def _compiled(ledger: Ledger, workflow_id: str) -> CompiledTemplate:
    document, content_hash = ledger.document(workflow_id), ledger.content_hash(workflow_id)
    if document is None or content_hash is None:
        raise TerminalError(f"the ledger has no template of {workflow_id}")
    keep_document(content_hash, document)
    return kept_template(content_hash)


def _keep_records(
    compiled: CompiledTemplate, planned: PlannedRun, entries: Sequence[TaskEntry]
) -> None:
    store, workflow_id = open_store(), entries[0].workflow_id
    ids = {
        each.task.name: task_id_for(workflow_id, compiled, each.task.name)
        for each in compiled.tasks
    }
    for node in compiled.tasks:
        folder = store.task(ids[node.task.name])
        if not folder.exists(RECORD_NAME):
            upstream = {name: ids[name] for name in node.task.depends_on}
            record = task_record(
                folder.name, compiled, node, workflow_id, planned.run_id, upstream, origin="api"
            )
            accepted = {"submitted_at": entries[0].submitted_at}
            write_record(folder, record.model_copy(update=accepted))


def _create_batch(
    instance: dg.DagsterInstance, ledger: Ledger, planned: PlannedRun, tasks: Sequence[TaskEntry]
) -> DagsterRun:
    documents = ledger.documents([each.workflow_id for each in tasks])
    members: list[Member] = []
    first = 0
    for each in tasks:
        rows = each.rows or 0
        members.append(
            Member(
                task_id=each.task_id,
                document=dict(documents[each.workflow_id]),
                submitted_at=each.submitted_at,
                first=first,
                rows=rows,
            )
        )
        first += rows
    write_batch(open_store(), Batch(batch_id=planned.run_id, members=tuple(members)))
    job = _LIBRARY_JOBS.job(LIBRARY, JOB)
    spec = compile_mapping(members[0].document).tasks[0].task.spec
    batch = {USER_TAG: _API, BATCH_TAG: str(len(members))}
    tags = {**job.tags, **fleet_tags_of(spec), **batch}
    return _run(instance, job, LIBRARY, planned.run_id, batch_run_config(planned.run_id), tags)


def _run(
    instance: dg.DagsterInstance,
    job: JobDefinition,
    pointer: CodePointer,
    run_id: str,
    run_config: object,
    tags: dict[str, str],
) -> DagsterRun:
    origin = ReconstructableRepository(pointer).get_reconstructable_job(job.name)
    location = LIBRARY_LOCATION if pointer == LIBRARY else SUBMITTED_LOCATION
    return instance.create_run_for_job(
        job,
        run_id=run_id,
        run_config=run_config,  # type: ignore[arg-type]
        tags=tags,
        status=DagsterRunStatus.NOT_STARTED,
        job_code_origin=origin.get_python_origin(),
        remote_job_origin=job_origin(job.name, location),
    )
