"""Real workers on a real Redis and a real PostgreSQL, without a supervisor: tests kill them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

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

from mloc_dagster.fleet import (
    LIBRARY,
    RedisFleetEngine,
    TicketState,
    TicketStatus,
    connect,
    members_key,
    open_engine,
)
from mloc_dagster.services import fleet_instance, pool_connections
from tests.e2e.stack import ROOT, until

RUNS = ("runs",)


class FleetProcesses:
    """Workers that share one fleet; see `mloc worker`.

    Args:
        folder: For logs and Dagster's own files.
        environment: The fleet's settings, those of this process too while it talks to the fleet.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        url = environment["MLOC_REDIS_URL"]
        self.engine = RedisFleetEngine(connect(url))
        ref = InstanceRef.from_dir(str(folder), overrides=fleet_instance())
        self.instance = dg.DagsterInstance.from_ref(ref)
        pool_connections(self.instance)
        self._library = ReconstructableRepository(LIBRARY)

    # Workers

    def start(self, name: str, queues: Sequence[str] = (), **environment: str) -> None:
        """Starts a worker; returns before it is there."""
        options = [text for queue in queues for text in ("--queues", queue)]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "mloc_dagster.cli", "worker", *options],
                cwd=ROOT,
                env={
                    **os.environ,
                    **self._environment,
                    **environment,
                    "MLOC_WORKER_NAME": name,
                    "OMP_NUM_THREADS": "1",
                },
                stdout=log,
                stderr=log,
            )

    def await_workers(self, *names: str) -> None:
        """Returns when the workers can take work."""
        for name in names:
            until(
                lambda name=name: name in self.registered(), f"{name} registers: {self.log(name)}"
            )

    def registered(self) -> set[str]:
        """The workers that the fleet believes to be alive."""
        return {each.worker_id for each in self.engine.workers() if each.status != "STARTING"}

    def log(self, name: str) -> Path:
        """What a worker prints."""
        return self._folder / f"{name}.log"

    def signal(self, name: str, signal: Signals) -> None:
        """Sends a signal to a worker, and waits for its end where it brings one about."""
        process = self._processes[name]
        process.send_signal(signal)
        if signal in (SIGKILL, SIGTERM):
            process.wait(timeout=300)
            del self._processes[name]

    def kill(self, name: str) -> None:
        """Ends a worker as a power cut would."""
        self.signal(name, SIGKILL)

    def close(self) -> None:
        """Ends every worker, and this process's connections."""
        for name in tuple(self._processes):
            self.kill(name)
        self.engine.close()
        self.instance.dispose()

    # Runs

    def create(self, job: str) -> DagsterRun:
        """Creates a run of a template of the library."""
        recon = self._library.get_reconstructable_job(job)
        definition = recon.get_definition()
        repository = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("tests"), "__repository__")
        return self.instance.create_run_for_job(
            definition,
            run_config=definition.run_config,
            job_code_origin=recon.get_python_origin(),
            remote_job_origin=RemoteJobOrigin(repository, job),
        )

    def hand_over(self, run: DagsterRun) -> None:
        """Does what Dagster's daemon does with a run whose turn it is."""
        self.instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))

    def launch(self, job: str) -> str:
        """Creates a run and hands it over; returns its id."""
        run = self.create(job)
        self.hand_over(run)
        return run.run_id

    def execute_here(self, job: str) -> str:
        """Executes a run in this process, as `dagster job execute` does; returns its id."""
        recon = self._library.get_reconstructable_job(job)
        config = {
            "execution": {"config": {"fleet": {}}},
            **(recon.get_definition().run_config or {}),
        }
        done = dg.execute_job(recon, self.instance, run_config=config)
        open_engine().close()
        return done.run_id

    def await_end(self, run_id: str, timeout_s: float = 300.0) -> DagsterRunStatus:
        """Returns how a run ended."""

        def ended() -> DagsterRunStatus | None:
            run = self.instance.get_run_by_id(run_id)
            return run.status if run is not None and run.is_finished else None

        found = until(ended, f"run {run_id} ends", timeout_s)
        assert found is not None
        return found

    def tickets(self, run_id: str) -> dict[str, TicketStatus]:
        """Where the tickets of a run's steps stand."""
        ids = [str(each) for each in self.engine.client.smembers(members_key(run_id))]  # type: ignore[union-attr]
        return {**self.engine.status([each for each in ids if not each.endswith(":run")])}

    def running(self, run_id: str) -> dict[str, str]:
        """The worker of each running ticket of a run's steps."""
        return {
            each.ticket_id: str(each.worker_id)
            for each in self.tickets(run_id).values()
            if each.state is TicketState.RUNNING
        }

    def run_worker(self, run_id: str) -> str | None:
        """Who carries a run."""
        return self.engine.status([f"{run_id}:run"])[f"{run_id}:run"].worker_id

    # What is left of a run

    def entries(self, run_id: str) -> Sequence[EventLogEntry]:
        """The event log of a run, in order."""
        return self.instance.all_logs(run_id)

    def steps(self, run_id: str, kind: DagsterEventType) -> list[str]:
        """The steps of a run that had an event of a kind, once for each."""
        return [
            str(entry.step_key)
            for entry in self.entries(run_id)
            if entry.dagster_event is not None and entry.dagster_event.event_type is kind
        ]

    def shards(self, run_id: str, kind: DagsterEventType) -> list[str]:
        """The mapping keys of the shards that had an event of a kind, once for each."""
        found = self.steps(run_id, kind)
        return [step.partition("[")[2].rstrip("]") for step in found if "run_shard[" in step]

    def text(self, run_id: str) -> str:
        """Everything that the event log says, in words."""
        lines: list[str] = []
        for entry in self.entries(run_id):
            event = entry.dagster_event
            lines.append(f"{entry.step_key}: {entry.user_message} {entry.message}")
            if event is not None and event.is_step_failure:
                lines.append(str(event.step_failure_data.error_display_string))
        return "\n".join(lines)

    def outputs(self, run_id: str) -> list[str]:
        """What the responses of a run's only task say, row by row."""
        results = Path(self._environment["MLOC_RESULTS_URL"])
        (reference,) = (results / ".dagster" / run_id / "assets").rglob("responses.json")
        task_id = json.loads(reference.read_text())["value"]["task_id"]
        items = json.loads((results / task_id / "responses.json").read_text())["result"]["items"]
        assert [item["index"] for item in items] == list(range(len(items)))
        return [item["output"] for item in items]
