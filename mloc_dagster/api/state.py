"""What the routes of one API share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from mloc_dagster.api.acceptance import Acceptance
from mloc_dagster.api.fleet_access import FleetAccess
from mloc_dagster.api.limits import Limits
from mloc_dagster.api.metrics import Metrics
from mloc_dagster.api.names import safe_task_id
from mloc_dagster.api.problems import no_such_task
from mloc_dagster.ledger.ledger import Ledger
from mloc_dagster.ledger.model import TaskEntry
from mloc_dagster.results.store import ResultStore, open_store


@dataclass(slots=True)
class ApiState:
    """What the routes of one API share.

    Attributes:
        ledger: What was accepted.
        fleet: Runs and workers.
        limits: How much a request may take.
        metrics: Counts.
        acceptance: Takes submissions.
        max_streams: Live logs at a time.
        open_streams: Live logs now.
    """

    ledger: Ledger
    fleet: FleetAccess
    limits: Limits
    metrics: Metrics
    acceptance: Acceptance
    max_streams: int
    open_streams: int = 0

    @property
    def store(self) -> ResultStore:
        """Where results are."""
        return open_store()

    def task(self, task_id: str) -> TaskEntry:
        """Returns a task; raises a 404 `Refusal` for an id that is none."""
        found = self.ledger.task(safe_task_id(task_id))
        if found is None:
            raise no_such_task(task_id)
        return found

    def tasks(self, name: str) -> tuple[TaskEntry, ...]:
        """Returns a task, or all tasks of a workflow.

        Raises:
            Refusal: 404, for an id that is neither's.
        """
        found = self.ledger.task(safe_task_id(name))
        entries = (found,) if found is not None else tuple(self.ledger.workflow(name))
        if not entries:
            raise no_such_task(name)
        return entries


def _state(request: Request) -> ApiState:
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
