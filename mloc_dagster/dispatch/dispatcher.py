"""The loop between the ledger and the fleet: one process of a fleet at a time runs it."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg
from dagster import DagsterRunStatus, RunRecord

from mloc_dagster.dispatch.batching import MOST_AT_ONCE, Group, by_slack, next_groups
from mloc_dagster.dispatch.launch import Preparing, Unwanted, hand_over
from mloc_dagster.dispatch.outcomes import (
    Adoption,
    changes_of_batch,
    changes_of_workflow,
    has_members_left,
    is_fresh,
    publish_cancelled,
    publish_ended,
    publish_submitted,
    refused,
    run_records,
)
from mloc_dagster.dispatch.recovery import Mending, Stopping
from mloc_dagster.errors import MlocError, TransientError
from mloc_dagster.fleet import RUNS_QUEUE, FleetEngine
from mloc_dagster.ledger import Ledger, PlannedRun, TaskChange
from mloc_dagster.results import open_store, read_outcome
from mloc_dagster.services import DATABASE_AWAY
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState

_log = logging.getLogger(__name__)

AWAY = (TransientError, OSError, *DATABASE_AWAY)
"""What is raised while the database, the fleet or the store is away: it is back some time."""

_LOOKED_AT = 4096
"""Waiting tasks that are considered at a time, the most urgent ones."""

_DETAILS_EVERY_S = 1.0
_DETAILS_AT_ONCE = 4
_TICKETS_EVERY_S = 2.0


class Dispatcher:
    """Gives waiting tasks their runs, and tells the ledger what becomes of these.

    Everything that it must not forget is in the ledger; another dispatcher goes on at any point.

    Args:
        ledger: What was accepted.
        instance: Where runs are.
        engine: The fleet.
    """

    def __init__(self, ledger: Ledger, instance: dg.DagsterInstance, engine: FleetEngine) -> None:
        self._ledger = ledger
        self._instance = instance
        self._engine = engine
        self._open = {each.run_id: each for each in ledger.open_runs()}
        self._keys: dict[str, str] = {}
        self._owners: dict[str, str] = {}
        self._statuses: dict[str, DagsterRunStatus] = {}
        self._tickets_at = 0.0
        self._seen: dict[str, float] = {}
        self._preparing = Preparing(lambda planned: hand_over(instance, ledger, planned))
        self._stopping = Stopping(instance)
        self._mending = Mending(instance, engine)
        self._adoption = Adoption(ledger, instance)

    def close(self) -> None:
        """Ends what is done beside the loop; what is not handed over yet is in the ledger."""
        self._preparing.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._open

    def turn(self) -> None:
        """Looks once at everything that there is to do.

        Raises:
            TransientError: If the database or Redis is away.
        """
        self._open.update({each.run_id: each for each in self._adoption.look()})
        publish_cancelled(self._ledger)
        self._stopping.stop(self._ledger.cancelling(), self._open)
        self._look()
        self._dispatch()
        self._hand_over()

    # Planning

    def _dispatch(self) -> None:
        slots = self._slots() - len(self._open)
        if slots <= 0:
            return
        busy = Counter(self._keys[each] for each in self._open if each in self._keys)
        full = [key for key, count in busy.items() if count >= MOST_AT_ONCE]
        at_work = {each.workflow_id for each in self._open.values()}
        found = self._ledger.waiting(_LOOKED_AT, without=full)
        now = datetime.now(UTC)
        waiting = by_slack([each for each in found if each.workflow_id not in at_work], now)
        groups = next_groups(waiting, busy, now, slots=slots)
        if not groups:
            return
        keys = {str(uuid.uuid4()): group for group in groups}
        planned = [self._planned(run_id, group) for run_id, group in keys.items()]
        decided = self._ledger.plan_runs(planned)
        publish_submitted(self._ledger, decided)
        for each in decided:
            self._open[each.run_id] = each
            group = keys[each.run_id]
            self._owners[each.run_id] = group.tasks[0].owner
            if group.batch_key is not None:
                self._keys[each.run_id] = group.batch_key

    def _planned(self, run_id: str, group: Group) -> PlannedRun:
        first = group.tasks[0]
        if group.batch_key is not None:
            ids = tuple(each.task_id for each in group.tasks)
            return PlannedRun(run_id=run_id, workflow_id=None, task_ids=ids)
        found = self._ledger.workflow(first.workflow_id)
        tasks = [each for each in found if each.run_id is None and not each.state.ended]
        return PlannedRun(
            run_id=run_id,
            workflow_id=first.workflow_id,
            task_ids=tuple(each.task_id for each in tasks),
            retry_rows=any(each.retry_rows for each in tasks),
        )

    def _slots(self) -> int:
        carriers = [each for each in self._engine.workers() if RUNS_QUEUE in each.queues]
        return settings().run_slots * len(carriers)

    # Handing over

    def _hand_over(self) -> None:
        """Hands batches over, and whole templates beside the loop: their jobs are to be built."""
        handed: list[PlannedRun] = []
        for planned in [each for each in self._open.values() if not each.handed_over]:
            if planned.workflow_id is not None:
                self._preparing.add(planned, self._owner(planned))
                continue
            try:
                hand_over(self._instance, self._ledger, planned)
            except AWAY:
                raise
            except Exception as error:  # noqa: BLE001 (one template must not stop all others)
                self._refuse(planned, error)
            else:
                handed.append(planned)
        for planned, error in self._preparing.ready():
            if isinstance(error, AWAY):
                raise error
            if error is not None:
                self._refuse(planned, error)
            else:
                handed.append(planned)
        self._open |= {each.run_id: replace(each, handed_over=True) for each in handed}
        if handed:
            self._ledger.handed_over([each.run_id for each in handed])

    def _owner(self, planned: PlannedRun) -> str:
        if planned.run_id not in self._owners:  # planned by a dispatcher before this one
            (first, *_) = self._ledger.tasks(planned.task_ids[:1]).values()
            self._owners[planned.run_id] = first.owner
        return self._owners[planned.run_id]

    def _refuse(self, planned: PlannedRun, error: Exception) -> None:
        """Ends a run that cannot be made: its tasks say why."""
        unwanted, ours = isinstance(error, Unwanted), isinstance(error, MlocError)
        if not unwanted:
            _log.warning(
                "run %s cannot be made: %s", planned.run_id, error, exc_info=None if ours else error
            )
        if planned.workflow_id is None and len(planned.task_ids) > 1:
            self._ledger.give_back(planned.run_id)
            self._forget(planned)
            return
        # There may be nothing to retry because somebody did so in Dagster's UI.
        changes = changes_of_workflow(self._instance, self._engine, planned)
        done = [each for each in changes if each.state is TaskState.DONE]
        self._ledger.change(done)
        but = {each.task_id for each in done}
        if unwanted:
            changes = refused(planned, "", TaskState.CANCELLED, but=but)
        else:
            why = str(error) if ours else f"its run cannot be made: {type(error).__name__}: {error}"
            changes = refused(planned, why, but=but)
        self._end_untold(planned, changes)

    # Looking

    def _look(self) -> None:
        open_runs = [each for each in self._open.values() if each.handed_over]
        records = run_records(self._instance, open_runs)
        now = time.monotonic()
        stale = self._stale(now)
        changes: list[TaskChange] = []
        for planned in open_runs:
            record = records.get(planned.run_id)
            if record is None:
                self._end_untold(planned, refused(planned, "its Dagster run was deleted"))
                continue
            status = record.dagster_run.status
            is_new = self._statuses.get(planned.run_id) is not status
            self._statuses[planned.run_id] = status
            if record.dagster_run.is_finished:
                self._finish(planned, record)
            elif is_new or planned.run_id in stale:
                self._seen[planned.run_id] = now
                changes += self._changes(planned, record)
        self._ledger.change(changes)
        if now - self._tickets_at >= _TICKETS_EVERY_S:
            self._tickets_at = now
            runs = [each.dagster_run for each in records.values()]
            self._mending.look(each for each in runs if not each.is_finished)

    def _stale(self, now: float) -> set[str]:
        """Returns the workflows' runs to be looked at closely: each look is a dozen queries."""
        known = {
            run_id: self._seen.get(run_id, 0.0)
            for run_id, planned in self._open.items()
            if planned.workflow_id is not None
        }
        due = [each for each in known if now - known[each] >= _DETAILS_EVERY_S]
        return set(sorted(due, key=lambda each: known[each])[:_DETAILS_AT_ONCE])

    def _changes(self, planned: PlannedRun, record: RunRecord) -> Sequence[TaskChange]:
        if planned.workflow_id is None:
            return changes_of_batch(self._instance, planned, record)
        return changes_of_workflow(self._instance, self._engine, planned)

    def _finish(self, planned: PlannedRun, record: RunRecord) -> None:
        if planned.workflow_id is None and has_members_left(record.dagster_run, planned):
            # One of them may have broken it for all: each is tried alone.
            self._ledger.give_back(planned.run_id)
            self._forget(planned)
            return
        changes = self._changes(planned, record)
        failing = any(each.state is TaskState.FAILED for each in changes)
        if failing and self._instance.run_retries_enabled and is_fresh(record):
            self._ledger.change(changes)  # a sensor says soon whether it is for good
        elif planned.workflow_id is None and read_outcome(open_store(), planned.run_id) is None:
            self._end_untold(planned, changes)
        else:
            self._end(planned, changes)

    def _end_untold(self, planned: PlannedRun, changes: Sequence[TaskChange]) -> None:
        """Ends a run that says nothing of its tasks."""
        publish_ended(self._ledger, changes)
        self._end(planned, changes)

    def _end(self, planned: PlannedRun, changes: Sequence[TaskChange]) -> None:
        self._ledger.change(changes)
        self._ledger.end_runs([planned.run_id])
        self._forget(planned)

    def _forget(self, planned: PlannedRun) -> None:
        for known in (self._open, self._keys, self._owners, self._statuses, self._seen):
            known.pop(planned.run_id, None)
        self._stopping.forget(planned)
