"""Run workers, step workers and others as threads of this process, on any engine.

The counterpart with processes that can be killed is `tests/e2e/fleet_processes.py`.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster import DagsterEventType, DagsterRun, DagsterRunStatus, EventLogEntry
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.instance.ref import InstanceRef
from dagster._core.launcher import LaunchRunContext
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.storage.event_log import InMemoryEventLogStorage

from mloc_dagster.events import WorkerEvent
from mloc_dagster.fleet import (
    CPU_QUEUE,
    LIBRARY,
    RUNS_QUEUE,
    Claim,
    FleetEngine,
    FleetRunLauncher,
    Hardware,
    Jobs,
    Leases,
    MemoryFleetEngine,
    RedisFleetEngine,
    RunWorker,
    StepTicket,
    StepWorker,
    TicketClaims,
    Worker,
    WorkerInfo,
    WorkerStatus,
    queues_for,
)
from mloc_dagster.services import captured, fleet_instance
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

_REPOSITORY = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("tests"), "__repository__")

SMALL = Hardware(cpus=2, memory_bytes=4 << 30)


def until[T](answer: Callable[[], T], what: str, timeout_s: float = 300.0) -> T:
    """Returns the first true answer; the bound is for what hangs."""
    deadline = monotonic() + timeout_s
    while not (found := answer()):
        assert monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        sleep(0.1)
    return found


class MemoryEventLog(InMemoryEventLogStorage):
    """Dagster's event log in memory, as the fleet needs it: a worker's events go to its run."""

    def store_event(self, event: EventLogEntry) -> None:
        if not captured(event):
            super().store_event(event)


def open_instance(folder: Path) -> dg.DagsterInstance:
    """An instance without a database server whose runs resume, and may share a process.

    As `services.instance.open_fleet_instance` does, it keeps Dagster from configuring Python's
    logging anew for each run.
    """
    overrides: dict[str, Any] = fleet_instance()
    del overrides["storage"]
    overrides["event_log_storage"] = {
        "module": __name__,
        "class": MemoryEventLog.__name__,
    }
    instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides=overrides))
    instance.get_yaml_python_handlers = list  # type: ignore[method-assign]
    return instance


class FleetThreads:
    """Workers in threads, and runs of the template library.

    Args:
        engine: The fleet.
        instance: Where runs are, as `open_instance` opens it.
        jobs: The library's jobs, built once for all workers.
    """

    def __init__(self, engine: FleetEngine, instance: dg.DagsterInstance, jobs: Jobs) -> None:
        self.engine = engine
        self.instance = instance
        self.launcher = FleetRunLauncher(engine=engine)
        self.launcher.register_instance(instance)
        self._jobs = jobs
        self._library = ReconstructableRepository(LIBRARY)
        self._open = ExitStack()

    # Workers

    def start_step_worker(self, name: str, hardware: Hardware = SMALL) -> Worker:
        """Starts a worker for shards."""
        work = StepWorker(self.engine, self.instance, self._jobs).perform
        return self._start(info_of(name, CPU_QUEUE, hardware=hardware), work, slots=1)

    def start_run_worker(self, name: str) -> Worker:
        """Starts a worker for runs."""
        work = RunWorker(self.engine, self.instance, self._jobs).perform
        return self._start(info_of(name, RUNS_QUEUE), work, slots=8)

    def _start(self, info: WorkerInfo, work: Callable[[Claim], None], slots: int) -> Worker:
        worker = Worker(self.engine, info, work, slots=slots)
        worker.start()
        self._open.callback(worker.close)
        return worker

    def dead_claims(self, lease_s: float) -> TicketClaims:
        """The claims of a worker that dies at once: nothing keeps its leases alive."""
        claims = self.engine.claims(Leases(lease_s, stall_timeout_s=600, on_stall=print))
        claims.close()
        return claims

    def take(self, queue: str, name: str, lease_s: float) -> Claim:
        """Takes the next ticket for a worker that dies at once."""
        claims = self.dead_claims(lease_s)
        return until(lambda: claims.take((queue,), name, SMALL, ()), f"{name} finds a ticket")

    def close(self) -> None:
        """Ends every worker."""
        self._open.close()

    # Runs

    def create(self, job: str) -> DagsterRun:
        """Creates a run of a template of the library."""
        recon = self._library.get_reconstructable_job(job)
        return self.instance.create_run_for_job(
            self._jobs.job(LIBRARY, job),
            run_config={
                "execution": {"config": {"fleet": {}}},
                "loggers": {"console": {"config": {"log_level": "ERROR"}}},
            },
            job_code_origin=recon.get_python_origin(),
            remote_job_origin=RemoteJobOrigin(_REPOSITORY, job),
        )

    def hand_over(self, run: DagsterRun) -> None:
        """Does what Dagster's daemon does with a run whose turn it is."""
        self.launcher.launch_run(LaunchRunContext(run, workspace=None))

    def launch(self, job: str) -> str:
        """Creates a run and hands it over; returns its id."""
        run = self.create(job)
        self.hand_over(run)
        return run.run_id

    def await_end(self, run_id: str) -> DagsterRunStatus:
        """Returns how a run ended."""

        def ended() -> DagsterRunStatus | None:
            run = self.instance.get_run_by_id(run_id)
            return run.status if run is not None and run.is_finished else None

        found = until(ended, f"run {run_id} ends")
        assert found is not None
        return found

    # What is left of a run

    def steps(self, run_id: str, kind: DagsterEventType) -> list[str]:
        """The steps of a run that had an event of a kind, once for each."""
        return [
            str(entry.step_key)
            for entry in self.instance.all_logs(run_id)
            if entry.dagster_event is not None and entry.dagster_event.event_type is kind
        ]

    def shards(self, run_id: str, kind: DagsterEventType) -> list[str]:
        """The mapping keys of the shards that had an event of a kind, once for each."""
        found = self.steps(run_id, kind)
        return sorted(step.partition("[")[2].rstrip("]") for step in found if "run_shard[" in step)

    def text(self, run_id: str) -> str:
        """Everything that the event log says, in words."""
        lines: list[str] = []
        for entry in self.instance.all_logs(run_id):
            event = entry.dagster_event
            lines.append(f"{entry.step_key}: {entry.user_message} {entry.message}")
            if event is not None and event.is_step_failure:
                lines.append(str(event.step_failure_data.error_display_string))
        return "\n".join(lines)

    def outputs(self, run_id: str) -> list[str]:
        """What the responses of a run's only task say, row by row."""
        results = Path(settings().results_url)
        (reference,) = (results / ".dagster" / run_id / "assets").rglob("responses.json")
        task_id = json.loads(reference.read_text())["value"]["task_id"]
        items = json.loads((results / task_id / "responses.json").read_text())["result"]["items"]
        return [item["output"] for item in items]


NEVER_S = 3600.0
"""Seconds between looks of a worker's own: within a test it makes one, when it starts."""


class IdleWorkers:
    """Workers in threads that only note which tickets they took: what wakes them, and when.

    Args:
        engine: The fleet.
        waiting: Returns how many workers wait to be woken.
    """

    def __init__(self, engine: FleetEngine, waiting: Callable[[], int]) -> None:
        self.engine = engine
        self.waiting = waiting
        self.done: list[tuple[str, str]] = []
        self.events: list[WorkerEvent] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self._open = ExitStack()

    def start(
        self,
        name: str,
        hardware: Hardware = SMALL,
        *,
        queues: tuple[str, ...] = (),
        warm: tuple[str, ...] = (),
        engine: FleetEngine | None = None,
    ) -> Worker:
        """Starts a worker, perhaps with a way of its own to the fleet; returns once it waits."""
        info = info_of(name, *(queues or queues_for(hardware)), hardware=hardware)

        def work(claim: Claim) -> None:
            self.may_end.wait(60)
            self.done.append((name, claim.ticket_id))
            claim.finish()

        worker = Worker(
            engine or self.engine,
            info.model_copy(update={"warm_models": warm}),
            work,
            slots=1,
            publish=self.events.append,
            look_every_s=NEVER_S,
        )
        before = self.waiting()
        worker.start()
        self._open.callback(worker.close)
        until(lambda: self.state_of(name) is WorkerStatus.IDLE, f"{name} is idle")
        until(lambda: self.waiting() > before, f"{name} waits")
        return worker

    def state_of(self, name: str) -> WorkerStatus | None:
        """What a worker says that it does; None for one that is not registered."""
        return next((each.status for each in self.engine.workers() if each.worker_id == name), None)

    def submit(self, name: str, **fields: object) -> StepTicket:
        """Submits a ticket; its run is the first part of its name."""
        ticket = StepTicket(ticket_id=name, run_id=name.partition(":")[0], queue=CPU_QUEUE)
        ticket = ticket.model_copy(update=fields)
        self.engine.submit(ticket)
        return ticket

    def await_done(self, *tickets: str) -> None:
        """Returns once tickets are done."""
        until(lambda: {each for _, each in self.done} >= set(tickets), f"{tickets} are done", 60)

    def close(self) -> None:
        """Ends every worker, and the engine."""
        self.may_end.set()
        self._open.close()
        self.engine.close()


def blocked_clients(engine: RedisFleetEngine) -> int:
    """How many workers wait on Redis."""
    return int(engine.client.info("clients")["blocked_clients"])  # type: ignore[index]


def blocked_threads(engine: MemoryFleetEngine) -> int:
    """How many workers wait in this process."""
    return len(engine._changed._waiters)  # type: ignore[attr-defined]


def info_of(name: str, *queues: str, hardware: Hardware = SMALL) -> WorkerInfo:
    """Who a worker is that takes some queues."""
    now = datetime.now(UTC)
    return WorkerInfo(
        worker_id=name,
        host=socket.gethostname(),
        pid=os.getpid(),
        queues=queues,
        hardware=hardware,
        started_at=now,
        last_seen=now,
    )
