"""A whole stack with the API, and what a benchmark asks of it."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from fleet_stack import FleetStack, own_environment, until

from mloc_dagster.services import component_states, kill_stack

OPEN = ("WAITING", "PENDING", "DISPATCHED", "RUNNING", "FAILED")
"""States of tasks that have not ended for good."""

_LOAD = Path(__file__).parent / "control_plane_load.py"
_DRAINED_WITHIN_S = 900.0


class ControlPlane(FleetStack):
    """`mloc up` with the API.

    Args:
        folder: Keeps the home and the results.
        library: The templates; none are needed.
        workers: Workers for shards.
    """

    def __init__(self, folder: Path, library: Path, *, workers: int) -> None:
        super().__init__(folder, library, workers=workers, api=True)
        self.port = int(self.environment["MLOC_API_PORT"])
        self.results = folder / "results"
        self._ids = folder / "ids"
        self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    # Asking

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Sends a request on a connection that stays open; returns status and body."""
        try:
            self._connection.request(method, path, body, dict(headers or {}))
            reply = self._connection.getresponse()
            return reply.status, reply.read()
        except http.client.RemoteDisconnected:
            # The server has closed a connection on which nothing came for a minute.
            self._connection.close()
            if method != "GET":
                raise
            return self.request(method, path, body, headers)
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def get(self, path: str) -> Any:
        """Returns a JSON answer.

        Raises:
            SystemExit: If it is not 200.
        """
        status, body = self.request("GET", path)
        if status != http.client.OK:
            raise SystemExit(f"{path} answered {status}: {body[:300].decode()}")
        return json.loads(body)

    def submit(self, text: str) -> list[str]:
        """Submits templates; returns the ids of their tasks.

        Raises:
            SystemExit: If they are refused.
        """
        status, body = self.request("POST", "/api/v1/tasks", text.encode())
        if status != http.client.ACCEPTED:
            raise SystemExit(f"a submission was answered {status}: {body[:300].decode()}")
        return [each["task_id"] for each in json.loads(body)["tasks"]]

    def counts(self) -> Counter[str]:
        """Returns how many tasks are in each state."""
        _, body = self.request("GET", "/metrics")
        lines = [each for each in body.decode().splitlines() if each.startswith("mloc_tasks{")]
        return Counter({each.split('"')[1]: int(float(each.split()[-1])) for each in lines})

    def drained(self) -> float:
        """Waits until no task is left; returns when that was, on the monotonic clock."""
        until(lambda: not self.left(), "no task left", _DRAINED_WITHIN_S)
        return time.monotonic()

    def left(self) -> int:
        """Returns how many tasks have not ended for good."""
        counts = self.counts()
        return sum(counts[each] for each in OPEN)

    def tasks(self, query: str = "") -> Iterator[dict[str, Any]]:
        """Yields tasks as the API lists them, the newest first."""
        cursor = ""
        while True:
            page = self.get(f"/api/v1/tasks?limit=1000{query}{cursor}")
            yield from page["tasks"]
            if page["next_cursor"] is None:
                return
            cursor = f"&cursor={page['next_cursor']}"

    # Doing

    def warm_up(self) -> None:
        """Lets every component have its first task."""
        self.submit(echo("warm", ["up"]))
        self.drained()

    def load(self, clients: int, seconds: float) -> tuple[dict[str, Any], list[str]]:
        """Lets clients submit; returns what they measured, and the tasks that were accepted."""
        command = [sys.executable, str(_LOAD), str(self.port), str(clients), str(seconds)]
        done = subprocess.run(
            [*command, str(self._ids)],
            env=own_environment(),
            check=True,
            stdout=subprocess.PIPE,
        )
        return json.loads(done.stdout), self._ids.read_text().split()

    def pid(self, name: str) -> int:
        """Returns the process of a component."""
        (found,) = [each.pid for each in component_states(self.layout) if each.name == name]
        if found is None:
            raise SystemExit(f"{name} does not run")
        return found

    def rss_mib(self, name: str = "api") -> float:
        """Returns the resident size of a component's process."""
        return round(psutil.Process(self.pid(name)).memory_info().rss / 2**20, 1)

    @contextmanager
    def dispatcher_paused(self) -> Iterator[None]:
        """Keeps the dispatcher from working: what is accepted meanwhile waits."""
        process = psutil.Process(self.pid("dispatcher"))
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills everything at once."""
        self._connection.close()
        kill_stack(self.layout)

    def component_pids(self) -> dict[str, list[int]]:
        """Returns the roots of the components' processes."""
        return {each.name: [each.pid] for each in component_states(self.layout) if each.pid}


class PeakMemory:
    """The largest resident size of a process while the block runs.

    Args:
        pid: The process.
    """

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.peak_mib = 0.0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            rss = round(self._process.memory_info().rss / 2**20, 1)
            self.peak_mib = max(self.peak_mib, rss)
            if self._stop.wait(0.05):
                return


def echo(name: str, items: Sequence[str], spec: str = "") -> str:
    """Returns an echo template.

    Args:
        name: Of the template.
        items: Its rows.
        spec: More lines of its spec, indented by two.
    """
    return f"""\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}}}
spec:
  taskType: echo
  data: {{type: list, items: {json.dumps(list(items))}}}
{spec}"""


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Returns p50 and p95 in milliseconds."""
    ordered = sorted(seconds)
    at = {"p50_ms": 0.5, "p95_ms": 0.95}
    return {
        name: round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 2)
        for name, share in at.items()
    }
