"""Runs that the dispatcher did not make, taken into the ledger: one list has all tasks.

`mloc run`, `mloc launch`, schedules, Dagster's UI and its commands make runs of templates without
asking the API. What they are stands in the tags that every template's job has.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile

import dagster as dg
from dagster import DagsterRunStatus, RunRecord

from mloc_dagster.dispatch.outcomes import changes_of_workflow
from mloc_dagster.errors import InputError
from mloc_dagster.fleet import FleetEngine
from mloc_dagster.ledger import FoundWorkflow, Ledger, NewTask
from mloc_dagster.ops import (
    DEPENDS_ON_TAG,
    LABELS_TAG,
    LAUNCH_TAG,
    NODES_TAG,
    OWNER_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    RESULTS_TAG,
    TASK_TYPES_TAG,
    TEMPLATE_TAG,
    WORKFLOW_TAG,
    process_of,
    run_labels,
    run_tasks,
    workflow_of,
)
from mloc_dagster.redaction import redact_urls
from mloc_dagster.results import RECORD_NAME, open_store
from mloc_dagster.services import (
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    RunRow,
    SqlRunStorage,
    runs_after,
)
from mloc_dagster.tasks import look_up
from mloc_dagster.wire import TaskOrigin

_EVERY_S = 2.0
_PAGE = 1_000

_SETTLED_S = 60.0
"""A run gets its place when its transaction begins, and is seen when that ends."""

_BY_ITSELF = ("dagster/schedule_name", "dagster/sensor_name")
_TAGS = (
    DEPENDS_ON_TAG,
    LABELS_TAG,
    LAUNCH_TAG,
    NODES_TAG,
    OWNER_TAG,
    PARENT_TAG,
    PROCESS_TAG,
    RESULTS_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    TASK_TYPES_TAG,
    TEMPLATE_TAG,
    WORKFLOW_TAG,
    *_BY_ITSELF,
)

_ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


class Following:
    """Looks through Dagster's runs as they come, for those that the ledger has not heard of.

    Args:
        ledger: What takes their tasks in.
        instance: Where runs are.
    """

    def __init__(self, ledger: Ledger, instance: dg.DagsterInstance) -> None:
        self._ledger = ledger
        self._storage = instance.run_storage
        self._looked_at = float("-inf")
        self._place: int | None = None

    def look(self) -> bool:
        """Takes in what is new; returns whether it has looked: it does so every few seconds."""
        now = time.monotonic()
        if now - self._looked_at < _EVERY_S or not isinstance(self._storage, SqlRunStorage):
            return False
        self._looked_at = now
        if self._place is None:
            self._place = self._ledger.followed_to()
        place, settled = self._place, self._place
        while rows := runs_after(self._storage, place, NODES_TAG, _TAGS, limit=_PAGE):
            _take_in(self._ledger, rows)
            old = list(takewhile(_is_settled, rows)) if settled == place else []
            settled = old[-1].place if old else settled
            place = rows[-1].place
        if settled > self._place:
            self._place = self._ledger.followed_to(settled)
        return True


def _is_settled(row: RunRow) -> bool:
    return time.time() - row.created_s > _SETTLED_S


def _take_in(ledger: Ledger, rows: Sequence[RunRow]) -> None:
    unknown = ledger.unknown_runs([each.run_id for each in rows])
    by_workflow: defaultdict[str, list[RunRow]] = defaultdict(list)
    for row in rows:
        if row.run_id in unknown:
            by_workflow[workflow_of(row.run_id, row.tags)].append(row)
    for workflow_id, runs in by_workflow.items():
        found = _found(workflow_id, runs)
        if runs[-1].status not in _ENDED or _may_have_records(found, runs[-1].tags):
            ledger.adopt(found)


def _may_have_records(found: FoundWorkflow, tags: Mapping[str, str]) -> bool:
    """Tells whether results may be left: tasks that were cleaned up are not taken in again.

    Other places than the own store are not looked at: what a tag says opens nothing here.
    """
    store = open_store()
    here = redact_urls(store.url)
    if tags.get(RESULTS_TAG, here) != here:
        return True
    return any(store.task(each.task_id).exists(RECORD_NAME) for each in found.tasks)


def take_in(
    ledger: Ledger, instance: dg.DagsterInstance, engine: FleetEngine | None, name: str
) -> str | None:
    """Takes in the workflow of a task or run that the ledger does not know.

    Args:
        ledger: What takes it in.
        instance: Where runs are.
        engine: The fleet; None where there is none.
        name: The id of a task, a workflow or a run.

    Returns:
        The workflow; None if nobody knows the name.
    """
    try:
        found = look_up(instance, name)
    except InputError:  # a run, and none of a template
        return None
    if found is None:
        return None
    workflow = found.workflow
    rows = [_row(each) for each in workflow.runs]
    adopted = ledger.adopt(_found(workflow.workflow_id, rows))
    if adopted is not None:
        ledger.change(changes_of_workflow(instance, engine, adopted))
    return workflow.workflow_id


def _row(record: RunRecord) -> RunRow:
    run = record.dagster_run
    created_s = record.create_timestamp.timestamp()
    return RunRow(
        record.storage_id,
        run.run_id,
        run.job_name,
        run.status,
        created_s,
        record.end_time,
        dict(run.tags),
    )


def _found(workflow_id: str, runs: Sequence[RunRow]) -> FoundWorkflow:
    first, tags = runs[0], runs[-1].tags
    return FoundWorkflow(
        workflow_id=workflow_id,
        runs=tuple(each.run_id for each in runs),
        origin=_origin(first.tags),
        template_name=tags.get(TEMPLATE_TAG, first.job_name),
        owner=tags.get(OWNER_TAG, ""),
        labels=run_labels(tags),
        submitted_at=datetime.fromtimestamp(first.created_s, UTC),
        tasks=tuple(
            NewTask(
                task_id=each.task_id,
                node=each.node,
                task_type=each.task_type,
                depends_on=each.depends_on,
            )
            for each in run_tasks(first.job_name, tags, workflow_id)
        ),
    )


def _origin(tags: Mapping[str, str]) -> TaskOrigin:
    if process_of(tags) is not None:
        return "run"
    if LAUNCH_TAG in tags:
        return "launch"
    return "schedule" if any(each in tags for each in _BY_ITSELF) else "dagster"
