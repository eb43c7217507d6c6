"""Cancelling runs, and requeueing those that a Redis that came back empty has lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus

from mloc_dagster.fleet import FleetEngine, ResumeRunContext, TicketState, run_ticket_id
from mloc_dagster.ledger import PlannedRun, TaskEntry
from mloc_dagster.results import cancelled_members, mark_cancelled, open_store
from mloc_dagster.tasks import launcher_of

_log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 10.0


class Stopping:
    """Asks runs to stop, now and then again; what comes of it is seen where outcomes are.

    Args:
        instance: Where the runs are.
    """

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._asked: dict[str, float] = {}

    def stop(self, unwanted: Iterable[TaskEntry], open_runs: Mapping[str, PlannedRun]) -> None:
        """Stops the runs of tasks; that of a batch when none of its members is wanted."""
        for task in unwanted:
            planned = open_runs.get(task.run_id or "")
            if planned is None or not planned.handed_over or self._asked_lately(task.task_id):
                continue
            self._asked[task.task_id] = time.monotonic()
            if planned.workflow_id is None:
                mark_cancelled(open_store(), planned.run_id, task.task_id)
                marked = cancelled_members(open_store(), planned.run_id)
                if not marked.issuperset(planned.task_ids):
                    continue
            self._end(planned.run_id)

    def _asked_lately(self, task_id: str) -> bool:
        return time.monotonic() - self._asked.get(task_id, float("-inf")) < _AGAIN_AFTER_S

    def _end(self, run_id: str) -> None:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished or run.status is DagsterRunStatus.CANCELING:
            return
        _log.info("run %s is stopped: nobody wants it any more", run_id)
        launcher_of(self._instance).terminate(run_id)

    def forget(self, planned: PlannedRun) -> None:
        """Forgets the tasks of a run that has ended."""
        for each in planned.task_ids:
            self._asked.pop(each, None)


class Mending:
    """Finds runs that the fleet should have and does not know.

    A run whose worker fell silent is none of them: other run workers look after it. And of a run
    that is found without a record for the first time its worker may not have noticed yet that it
    lost it; it has at the next look, when that is a second later or more.

    Args:
        instance: Where the runs are.
        engine: The fleet.
    """

    def __init__(self, instance: dg.DagsterInstance, engine: FleetEngine) -> None:
        self._instance = instance
        self._engine = engine
        self._missed: set[str] = set()

    def look(self, runs: Iterable[DagsterRun]) -> None:
        """Gives runs to the fleet again that it has not known since the last look.

        Args:
            runs: That were handed over and have not ended.
        """
        known = {run_ticket_id(each.run_id): each for each in runs}
        tickets = self._engine.status(list(known)) if known else {}
        missing = {
            known[ticket_id].run_id
            for ticket_id, ticket in tickets.items()
            if ticket.state is TicketState.LOST and ticket.worker_id is None
        }
        for run in known.values():
            if run.run_id in missing & self._missed:
                _log.warning("the fleet has forgotten run %s, and is given it again", run.run_id)
                launcher_of(self._instance).resume_run(
                    ResumeRunContext(run, workspace=None, resume_attempt_number=None)
                )
        self._missed = missing
