"""The API over a ledger in memory, in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
from starlette.testclient import TestClient

from mloc_dagster.api import FleetAccess, create_app
from mloc_dagster.ledger import Ledger
from mloc_dagster.results import Folder, open_store
from tests.memory_ledger import MemoryLedger

ECHO = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: hello, owner: team-a, labels: {purpose: example}}
spec:
  taskType: echo
  data: {type: list, items: [one, two]}
"""

STAGES = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: two}
spec:
  stages:
    - {name: first, spec: {taskType: echo, data: {type: list, items: [a]}}}
    - name: second
      spec: {taskType: echo, data: {type: list, items: ["${first.result.items[0].output}"]}}
"""


@dataclass(frozen=True)
class Served:
    client: TestClient
    ledger: MemoryLedger

    def submit(self, text: str = ECHO) -> str:
        """Submits a template; returns the id of its first task."""
        answer = self.client.post("/api/v1/tasks", content=text)
        assert answer.status_code == 202, answer.text
        return answer.json()["tasks"][0]["task_id"]

    def folder(self, task_id: str) -> Folder:
        return open_store().task(task_id)


@contextmanager
def serving(*, show_errors: bool = True) -> Iterator[Served]:
    """The API, with the settings of this moment."""
    ledger = MemoryLedger()
    with dg.DagsterInstance.ephemeral() as instance:
        app = create_app(ledger, NoRuns(instance))  # type: ignore[arg-type]
        with TestClient(app, "http://127.0.0.1", raise_server_exceptions=show_errors) as client:
            yield Served(client, ledger)


class NoRuns(FleetAccess):
    """A Dagster without runs, in memory."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        super().__init__()
        self._instance = instance


def served_ledger() -> Ledger:
    """A ledger in memory, for an API that a real server serves."""
    return MemoryLedger()  # type: ignore[return-value]
