"""A whole stack for a benchmark: `mloc up` in a home of its own, and more workers beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from fleet_client import Client

from mloc_dagster.fleet import RUNS_QUEUE, WorkerInfo, WorkerStatus, open_engine
from mloc_dagster.home import StackLayout
from mloc_dagster.services import (
    DAEMON_WORKSPACE,
    STACK,
    StackPlan,
    choose_port,
    component_states,
    kill_stack,
    saved_plan,
    stack_processes,
)

ROOT = Path(__file__).parents[1]
CONTROL_PLANE = ("daemon", "code", "webserver", "redis", "postgres")

RUN_CONFIG = {
    "execution": {"config": {"fleet": {}}},
    "loggers": {"console": {"config": {"log_level": "ERROR"}}},
}

_STOP_S = 60.0


def own_environment() -> dict[str, str]:
    """Returns this process's environment without what would tie a benchmark to another home."""
    keep = {key: text for key, text in os.environ.items() if not key.startswith("MLOC_")}
    keep.pop("DAGSTER_HOME", None)
    # Workers that compute on all cores at once would measure one another.
    return {**keep, "OMP_NUM_THREADS": "1"}


def until[T](answer: Callable[[], T | None], what: str, timeout_s: float = 300.0) -> T:
    """Returns the first true answer.

    Raises:
        SystemExit: If there is none in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (found := answer()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return found


class FleetStack:
    """Everything of the fleet, switched on as a user would have it.

    Args:
        folder: Keeps the home and the results.
        library: The templates.
        workers: Workers for shards that the stack itself starts.
        api: Whether the HTTP API and its dispatcher belong to it; there is no `client` then.
    """

    def __init__(self, folder: Path, library: Path, *, workers: int, api: bool = False) -> None:
        self.layout = StackLayout((folder / "fleet").resolve())
        self._folder = folder
        self._workers = workers
        self._api = api
        self._port = choose_port("127.0.0.1", None, None, "")
        self._more: list[psutil.Popen] = []
        self._stopping = ExitStack()
        self.environment = {
            **own_environment(),
            "MLOC_HOME": str(self.layout.home),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "MLOC_TEMPLATES_DIR": str(library),
            "MLOC_API_PORT": str(choose_port("127.0.0.1", None, None, "", unless=self._port)),
        }

    def __enter__(self) -> Self:
        self._stopping.callback(self._stop)
        try:
            self.up()
            if not self._api:
                self.client = self._stopping.enter_context(self._client())
        except BaseException:
            self._stopping.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.close()

    def up(self) -> None:
        """Starts it, or what is missing of it, and waits until every component answers."""
        sizes = ("--workers", str(self._workers), "--run-workers", "1")
        api = () if self._api else ("--no-api",)
        self._mloc("up", *sizes, "--port", str(self._port), *api, "--detach")

    def down(self) -> None:
        """Stops it."""
        self._mloc("down")

    def _client(self) -> Client:
        workspace = self.layout.dagster_home / DAEMON_WORKSPACE
        return Client(self._folder / "client", self.plan.postgres_url, workspace, RUN_CONFIG)

    def _mloc(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "mloc_dagster.cli", *arguments]
        subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, stdout=subprocess.DEVNULL
        )

    def _stop(self) -> None:
        for each in self._more:
            each.terminate()
        psutil.wait_procs(self._more, timeout=_STOP_S)
        try:
            self.down()
        finally:
            if stack_processes(self.layout):
                kill_stack(self.layout)

    @property
    def plan(self) -> StackPlan:
        """Its addresses.

        Raises:
            SystemExit: If it never started.
        """
        plan = saved_plan(self.layout)
        if plan is None:
            raise SystemExit(f"no stack in {self.layout.home}")
        return plan

    def step_workers(self) -> dict[str, WorkerInfo]:
        """Returns the live workers for shards, by name."""
        live = open_engine(self.plan.redis_url).workers()
        return {each.worker_id: each for each in live if RUNS_QUEUE not in each.queues}

    def grow_to(self, count: int) -> None:
        """Starts workers until so many are registered and idle."""
        environment = {
            **self.environment,
            "DAGSTER_HOME": str(self.layout.dagster_home),
            "MLOC_REDIS_URL": self.plan.redis_url,
            "MLOC_POSTGRES_URL": self.plan.postgres_url,
            "SPT_NOENV": "1",
            # By this `mloc down` knows them, should this process die.
            STACK: str(self.layout.home),
        }
        for number in range(self._workers + len(self._more) + 1, count + 1):
            name = f"more-{number}"
            with (self.layout.logs / f"{name}.log").open("wb") as log:
                worker = psutil.Popen(
                    [sys.executable, "-m", "mloc_dagster.cli", "worker"],
                    cwd=ROOT,
                    env={**environment, "MLOC_WORKER_NAME": name},
                    stdout=log,
                    stderr=log,
                )
            self._more.append(worker)
        until(lambda: self._idle() == count, f"{count} idle workers")

    def _idle(self) -> int:
        return sum(each.status is WorkerStatus.IDLE for each in self.step_workers().values())

    def replace_worker(self) -> None:
        """Ends the stack's only worker and waits for the one that follows it."""
        (before,) = self.step_workers().values()
        psutil.Process(before.pid).terminate()

        def replaced() -> bool:
            live = list(self.step_workers().values())
            return [
                each.pid != before.pid and each.status is WorkerStatus.IDLE for each in live
            ] == [True]

        until(replaced, "a new worker")

    def process_groups(self) -> dict[str, list[int]]:
        """Returns the roots of its processes: the control plane by name, run worker, workers."""
        pids = {each.name: each.pid for each in component_states(self.layout) if each.pid}
        return {
            **{name: [pids[name]] for name in CONTROL_PLANE},
            "run_worker": [pid for name, pid in pids.items() if name.startswith("runs-")],
            "workers": [
                *(pid for name, pid in pids.items() if name.startswith("worker-")),
                *(each.pid for each in self._more),
            ],
        }
