"""Runs that are under way, and what becomes of them in the ledger."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus, RunRecord

from mloc_dagster.dispatch.outcomes import (
    changes_of_batch,
    changes_of_workflow,
    has_members_left,
    is_fresh,
    publish_ended,
    refused,
    run_records,
)
from mloc_dagster.fleet import FleetEngine, carries_itself
from mloc_dagster.ledger import Ledger, PlannedRun, TaskChange
from mloc_dagster.ops import may_be_alive, process_of
from mloc_dagster.results import open_store, read_outcome
from mloc_dagster.wire import TaskState

_DETAILS_EVERY_S = 1.0
_DETAILS_AT_ONCE = 4


class OpenRuns:
    """Runs that the ledger has and that have not ended.

    Args:
        ledger: Whose runs; it is told what becomes of their tasks.
        instance: Where the runs are.
        engine: The fleet; None where there is none.
    """

    def __init__(
        self, ledger: Ledger, instance: dg.DagsterInstance, engine: FleetEngine | None
    ) -> None:
        self._ledger = ledger
        self._instance = instance
        self._engine = engine
        self._open: dict[str, PlannedRun] = {}
        self._runs: dict[str, DagsterRun] = {}
        self._statuses: dict[str, DagsterRunStatus] = {}
        self._seen: dict[str, float] = {}
        self._ended: list[PlannedRun] = []
        self.read()

    def read(self) -> None:
        """Reads from the ledger which runs there are: others take runs in, too."""
        for each in self._ledger.open_runs():
            self._open.setdefault(each.run_id, each)

    def __iter__(self) -> Iterator[PlannedRun]:
        """Yields them, the oldest first."""
        return iter(tuple(self._open.values()))

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self._open)

    @property
    def by_id(self) -> Mapping[str, PlannedRun]:
        """The runs."""
        return self._open

    @property
    def on_the_fleet(self) -> Sequence[DagsterRun]:
        """Those that run workers have or should have, as of the last look."""
        return [each for each in self._runs.values() if _is_on_the_fleet(each)]

    def count_slots(self) -> int:
        """Returns how many run workers' slots they take or are about to take."""
        return sum(
            run_id not in self._runs or _is_on_the_fleet(self._runs[run_id])
            for run_id in self._open
        )

    def add(self, planned: PlannedRun) -> None:
        """Adds a run that was planned."""
        self._open[planned.run_id] = planned

    def hand_over(self, planned: Sequence[PlannedRun]) -> None:
        """Notes that the fleet has runs."""
        if planned:
            self._open |= {each.run_id: replace(each, handed_over=True) for each in planned}
            self._ledger.handed_over([each.run_id for each in planned])

    def look(self) -> Sequence[PlannedRun]:
        """Writes down what is new about the runs; returns those that have ended since then.

        Raises:
            TransientError: If the database or Redis is away.
        """
        handed = [each for each in self if each.handed_over]
        records = run_records(self._instance, handed)
        self._runs = {
            run_id: each.dagster_run
            for run_id, each in records.items()
            if not each.dagster_run.is_finished
        }
        now = time.monotonic()
        stale = self._stale(now)
        changes: list[TaskChange] = []
        for planned in handed:
            record = records.get(planned.run_id)
            if record is None:
                self.end_untold(planned, refused(planned, "its Dagster run was deleted"))
                continue
            run = record.dagster_run
            is_new = self._statuses.get(planned.run_id) is not run.status
            self._statuses[planned.run_id] = run.status
            if run.is_finished:
                self._finish(planned, record)
            elif is_new or planned.run_id in stale:
                self._seen[planned.run_id] = now
                self._close_if_killed(run)
                changes += self._changes(planned, record)
        self._ledger.change(changes)
        ended, self._ended = self._ended, []
        return ended

    def _stale(self, now: float) -> set[str]:
        """Returns the workflows' runs to be looked at closely: each look is a dozen queries."""
        known = {
            each.run_id: self._seen.get(each.run_id, 0.0)
            for each in self
            if each.workflow_id is not None
        }
        due = [each for each in known if now - known[each] >= _DETAILS_EVERY_S]
        return set(sorted(due, key=lambda each: known[each])[:_DETAILS_AT_ONCE])

    def _close_if_killed(self, run: DagsterRun) -> None:
        process = process_of(run.tags)
        if process is not None and not may_be_alive(process):
            self._instance.report_run_canceled(run, "The process that ran it is gone.")

    def _changes(self, planned: PlannedRun, record: RunRecord) -> Sequence[TaskChange]:
        if planned.workflow_id is None:
            return changes_of_batch(self._instance, planned, record)
        return changes_of_workflow(self._instance, self._engine, planned)

    def _finish(self, planned: PlannedRun, record: RunRecord) -> None:
        if planned.workflow_id is None and has_members_left(record.dagster_run, planned):
            # One of them may have broken it for all: each is tried alone.
            self.give_back(planned)
            return
        changes = self._changes(planned, record)
        failing = any(each.state is TaskState.FAILED for each in changes)
        if failing and self._instance.run_retries_enabled and is_fresh(record):
            self._ledger.change(changes)  # a sensor says soon whether it is for good
        elif planned.workflow_id is None and read_outcome(open_store(), planned.run_id) is None:
            self.end_untold(planned, changes)
        else:
            self.end(planned, changes)

    def give_back(self, planned: PlannedRun) -> None:
        """Ends a run whose tasks wait for others."""
        self._ledger.give_back(planned.run_id)
        self._forget(planned)

    def refuse(self, planned: PlannedRun, why: str, state: TaskState) -> None:
        """Ends a run that cannot be made: its tasks say why.

        There may be nothing to retry because somebody did so in Dagster's UI: what is done, is.
        """
        changes = changes_of_workflow(self._instance, self._engine, planned)
        done = [each for each in changes if each.state is TaskState.DONE]
        self._ledger.change(done)
        but = {each.task_id for each in done}
        self.end_untold(planned, refused(planned, why, state, but=but))

    def end_untold(self, planned: PlannedRun, changes: Sequence[TaskChange]) -> None:
        """Ends a run that says nothing of its tasks."""
        publish_ended(self._ledger, changes)
        self.end(planned, changes)

    def end(self, planned: PlannedRun, changes: Sequence[TaskChange]) -> None:
        """Ends a run, and writes down how its tasks are."""
        self._ledger.change(changes)
        self._ledger.end_runs([planned.run_id])
        self._forget(planned)

    def _forget(self, planned: PlannedRun) -> None:
        self._ended.append(planned)
        for known in (self._open, self._runs, self._statuses, self._seen):
            known.pop(planned.run_id, None)


def _is_on_the_fleet(run: DagsterRun) -> bool:
    waits = (DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED)
    return run.status not in waits and not carries_itself(run)
