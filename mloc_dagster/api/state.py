"""What every route needs: ledger, fleet, store, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from mloc_dagster.api.acceptance import Acceptance
from mloc_dagster.api.fleet_access import FleetAccess
from mloc_dagster.api.limits import Limits
from mloc_dagster.api.metrics import Metrics
from mloc_dagster.api.openai.calls import CallRouter
from mloc_dagster.api.parameters import safe_task_id
from mloc_dagster.api.problems import no_such_task
from mloc_dagster.ledger import Ledger, TaskEntry, TaskFilter
from mloc_dagster.results import ResultStore, open_store

_COMPARED = 500
"""Latest tasks among which the neighbour of a mistyped id is looked for."""


@dataclass(slots=True)
class ApiState:
    """What the routes of one API share.

    Attributes:
        ledger: What was accepted.
        fleet: Runs and workers.
        limits: How much a request may take.
        metrics: Counts.
        acceptance: Takes submissions.
        calls: Has calls answered.
        max_streams: Live logs at a time.
        open_streams: Live logs now.
    """

    ledger: Ledger
    fleet: FleetAccess
    limits: Limits
    metrics: Metrics
    acceptance: Acceptance
    calls: CallRouter
    max_streams: int
    open_streams: int = 0

    @property
    def store(self) -> ResultStore:
        """Where results are."""
        return open_store()

    def task(self, task_id: str) -> TaskEntry:
        """Returns a task; raises a 404 `Refusal` for an id that is none."""
        found = self.ledger.task(safe_task_id(task_id))
        if found is None and self.take_in(task_id) is not None:
            found = self.ledger.task(task_id)
        if found is None:
            raise no_such_task(task_id, self._latest_ids())
        return found

    def tasks(self, name: str) -> tuple[TaskEntry, ...]:
        """Returns a task, or all tasks of a workflow or a run.

        Raises:
            Refusal: 404, for an id that is none of these.
        """
        found = self.ledger.task(safe_task_id(name))
        return (found,) if found is not None else self.workflow(name)

    def workflow(self, name: str) -> tuple[TaskEntry, ...]:
        """Returns the tasks of a workflow or a run, in the template's order.

        Raises:
            Refusal: 404, for an id that is neither's.
        """
        entries = self.ledger.workflow(safe_task_id(name))
        if not entries and (workflow_id := self.take_in(name)) is not None:
            known = self.ledger.workflow(workflow_id)
            entries = [each for each in known if each.task_id == name] or known
        if not entries:
            raise no_such_task(name, self._latest_ids())
        return tuple(entries)

    def _latest_ids(self) -> Sequence[str]:
        latest, _ = self.ledger.list(TaskFilter(), limit=_COMPARED)
        return list(dict.fromkeys(id for each in latest for id in (each.task_id, each.workflow_id)))

    def take_in(self, name: str) -> str | None:
        """Looks for a task that the dispatcher has not met yet; returns its workflow."""
        from mloc_dagster.dispatch import take_in

        return take_in(self.ledger, self.fleet.instance(), self.fleet.engine_if_any(), name)


# FastAPI sends a dependency that is no coroutine through a thread of its pool, for each request.
async def _state(request: Request) -> ApiState:
    return request.app.state.api


State = Annotated[ApiState, Depends(_state)]


def reply(model: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns an answer; it is not validated again, as it was built from types."""
    return Response(
        model.model_dump_json(by_alias=True),
        status_code=status,
        media_type="application/json",
        headers=headers,
    )
