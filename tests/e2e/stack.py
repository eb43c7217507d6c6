"""A whole stack for tests: started on free ports in a home of its own, broken, and stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL, SIGSTOP
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

import psutil

from mloc_dagster.cli.stack_readiness import component_answers
from mloc_dagster.home import StackLayout
from mloc_dagster.services import (
    ComponentState,
    StackPlan,
    component_states,
    kill_stack,
    saved_plan,
    stack_processes,
)
from tests.ports import free_port

ROOT = Path(__file__).parents[2]


def until[T](answer: Callable[[], T], what: str, timeout_s: float = 300.0) -> T:
    """Returns the first true answer; for what other processes do in their own time.

    Bounds here and in what waits with it are for what hangs: a machine may be slow ten times over.
    """
    deadline = monotonic() + timeout_s
    while True:
        found = answer()
        if found:
            return found
        assert monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        sleep(0.05)


class Stack:
    """`mloc up --detach` in a home of its own.

    Args:
        home: The `MLOC_HOME`; may hold an earlier stack's data.
        workers: Workers for shards.
        run_workers: Workers for runs.
        api: Whether the HTTP API and its dispatcher belong to it.
        environment: Settings beyond those of this process, such as `MLOC_LEASE_TTL_S`.
    """

    def __init__(
        self,
        home: Path,
        *,
        workers: int = 0,
        run_workers: int = 0,
        api: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.layout = StackLayout(home.resolve())
        self.workers = workers
        self.run_workers = run_workers
        self.port, self.api_port = free_port(), free_port()
        self.api = api
        given = {key: text for key, text in os.environ.items() if key != "DAGSTER_HOME"}
        self.environment = {
            **given,
            "MLOC_HOME": str(self.layout.home),
            "MLOC_RESULTS_URL": str(self.layout.home / "results"),
            "MLOC_API_PORT": str(self.api_port),
            "OMP_NUM_THREADS": "1",
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def mloc(self, *arguments: str, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
        """Runs an `mloc` command on this stack's home."""
        return subprocess.run(
            [sys.executable, "-m", "mloc_dagster.cli", *arguments],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up_arguments(self) -> list[str]:
        """What `start` gives to `mloc`."""
        sizes = ["--workers", str(self.workers), "--run-workers", str(self.run_workers)]
        api = [] if self.api else ["--no-api"]
        return ["up", *sizes, "--port", str(self.port), *api]

    def start(self) -> subprocess.CompletedProcess[str]:
        """Returns when every component answers."""
        done = self.mloc(*self.up_arguments(), "--detach")
        if done.returncode != 0:
            kill_stack(self.layout)
        assert done.returncode == 0, done.stderr
        return done

    def stop(self) -> None:
        """Stops everything; asserts that nothing is left."""
        done = self.mloc("down")
        left = self.processes()
        if left:
            kill_stack(self.layout)
        assert done.returncode == 0, done.stderr
        assert left == []

    def processes(self) -> list[psutil.Process]:
        """Every process of this stack, whoever its parent is."""
        return stack_processes(self.layout)

    @property
    def plan(self) -> StackPlan:
        """Its addresses and size."""
        plan = saved_plan(self.layout)
        assert plan is not None
        return plan

    @property
    def redis_url(self) -> str:
        """With its password."""
        return self.plan.redis_url

    @property
    def postgres_url(self) -> str:
        """With its password."""
        return self.plan.postgres_url

    @property
    def webserver_url(self) -> str:
        """Dagster's UI."""
        return self.plan.webserver_url

    def components(self) -> dict[str, ComponentState]:
        """Every component as the supervisor has it."""
        return {each.name: each for each in component_states(self.layout)}

    def component(self, name: str) -> ComponentState:
        """One component; `runs` is `runs-1`."""
        known = self.components()
        return known[name if name in known else f"{name}-1"]

    def pid(self, name: str) -> int:
        """The process of a component."""
        pid = self.component(name).pid
        assert pid is not None, f"{name} has no process now"
        return pid

    def kill(self, name: str) -> int:
        """`kill -9` of a component; `supervisor` is the one that starts the others again.

        Returns:
            The pid that it had.
        """
        is_supervisor = name == "supervisor"
        pid = int(self.layout.pid_file.read_text()) if is_supervisor else self.pid(name)
        os.kill(pid, SIGKILL)
        return pid

    def freeze(self, name: str) -> int:
        """`kill -STOP` of a component, from which nothing comes until it is killed or goes on.

        Returns:
            Its pid.
        """
        pid = self.pid(name)
        os.kill(pid, SIGSTOP)
        return pid

    def kill_all(self) -> None:
        """`kill -9` of the whole stack at once, its supervisor first."""
        pids = [each.pid for each in self.processes()]
        supervisor = int(self.layout.pid_file.read_text())
        for pid in (supervisor, *(each for each in pids if each != supervisor)):
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                continue  # PostgreSQL's processes follow their server by themselves
        until(lambda: not self.processes(), "the killed stack is gone")

    def wait_running(
        self, name: str, *, not_pid: int | None = None, timeout_s: float = 300.0
    ) -> int:
        """Waits until a component runs and answers, after `kill` with another pid than before.

        Returns:
            Its pid.
        """

        def running() -> int | None:
            state = self.component(name)
            alive = state.state == "RUNNING" and state.pid != not_pid
            return state.pid if alive and component_answers(plan, state, since) else None

        plan, since = self.plan, datetime.now(UTC)
        pid = until(running, f"{name} runs", timeout_s)
        assert pid is not None
        return pid

    def status(self) -> dict[str, Any]:
        """What `mloc status --json` says."""
        return json.loads(self.mloc("status", "--json").stdout)
