"""Giving runs to the fleet again that it has forgotten: a Redis may come back empty."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dagster as dg
from dagster import DagsterRun
from dagster._core.launcher import ResumeRunContext

from mloc_dagster.fleet import FleetEngine, TicketState
from mloc_dagster.fleet.dagster.tickets import run_ticket_id
from mloc_dagster.tasks.cancel import launcher_of

_log = logging.getLogger(__name__)


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
