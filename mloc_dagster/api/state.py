"""What every route needs: settings, ledger, store; lazy access to Dagster and the fleet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request
from fastapi.responses import Response
from pydantic import BaseModel

from mloc_dagster.api.acceptance import Acceptance
from mloc_dagster.api.limits import Limits
from mloc_dagster.api.metrics import Metrics
from mloc_dagster.api.parameters import safe_task_id
from mloc_dagster.api.problems import no_such_task
from mloc_dagster.errors import InputError, MlocError, TransientError
from mloc_dagster.events import STREAM_AWAY, LastProgress, last_training_progress, open_redis
from mloc_dagster.fleet import FleetEngine, WorkerInfo, fleet_url, open_engine, require_fleet
from mloc_dagster.ledger import Ledger, TaskEntry, TaskFilter
from mloc_dagster.results import ResultStore, open_store

if TYPE_CHECKING:
    import dagster as dg


_COMPARED = 500
"""Latest tasks among which the neighbour of a mistyped id is looked for."""


class FleetAccess:
    """What the API asks about runs and workers; each call may wait, so it belongs into a thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = ExitStack()
        self._instance: dg.DagsterInstance | None = None

    def close(self) -> None:
        """Closes what was opened."""
        with self._lock:
            self._open.close()
            self._instance = None

    def instance(self) -> dg.DagsterInstance:
        """Returns Dagster's instance, its connections pooled."""
        from mloc_dagster.services import open_instance

        with self._lock:
            if self._instance is None:
                self._instance = self._open.enter_context(open_instance())
            return self._instance

    def engine_if_any(self) -> FleetEngine | None:
        """Returns the fleet's engine; None without one, and while it does not answer."""
        try:
            return self.engine()
        except MlocError:  # what Dagster and the store know still holds
            return None

    def engine(self) -> FleetEngine:
        """Returns the fleet's engine.

        Raises:
            TransientError: If none is configured, or it does not answer, which its clients would
                wait for, for minutes.
        """
        try:
            require_fleet()
        except InputError as error:  # whoever asks over HTTP cannot start one
            raise TransientError(str(error)) from error
        return open_engine()

    def check_writable(self) -> None:
        """Returns if the fleet takes what is written.

        Raises:
            TransientError: If it does not answer, or refuses: it is full, or read-only.
        """
        self.engine().check_writable()

    def workers(self) -> Sequence[WorkerInfo]:
        """Returns the live workers."""
        return self.engine().workers()

    def worker(self, worker_id: str) -> tuple[WorkerInfo | None, bool]:
        """Returns a worker as it was last heard of, and whether it lives."""
        engine = self.engine()
        live = {each.worker_id for each in engine.workers()}
        return engine.worker(worker_id), worker_id in live

    def silent_workers(self) -> Sequence[str]:
        """Returns the ids of registered workers whose heartbeat has lapsed."""
        return self.engine().silent_workers()

    def strike_off(self) -> Sequence[str]:
        """Takes the silent workers out of the registry."""
        engine = self.engine()
        return [each for each in engine.silent_workers() if engine.strike_off(each)]

    def queue_depths(self) -> Mapping[str, int]:
        """Returns how many tickets wait, by queue."""
        return self.engine().queue_depths()

    def last_progress(self, task_id: str, since: datetime) -> LastProgress | None:
        """Returns how far a training said it was; None where nobody can tell."""
        try:
            with open_redis(fleet_url()) as client:
                return last_training_progress(client, task_id, since)
        except (InputError, *STREAM_AWAY):  # its checkpoints still tell
            return None


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
