"""One stack for the whole suite, and what an undisturbed task's rows are."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.chaos.agents import agents_template, ledger_of
from tests.e2e.chaos.task import TEMPLATE, Task
from tests.e2e.stack import Stack

LEASE_S = 3
"""Short, so that the suite waits little; `test_default_lease` has the default of ten."""


@pytest.fixture(scope="package")
def stack() -> Iterator[Stack]:
    """Two workers and a run worker, on a small template library."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        library = Path(folder) / "templates"
        library.mkdir()
        (library / "chaos.yaml").write_text(TEMPLATE)
        (library / "agents.yaml").write_text(agents_template(ledger_of(library)))
        environment = {
            "MLOC_TEMPLATES_DIR": str(library),
            "MLOC_LEASE_TTL_S": str(LEASE_S),
            "MLOC_FLUSH_INTERVAL_S": "0.2",
        }
        home = Path(folder) / "home"
        with Stack(home, workers=2, run_workers=1, environment=environment) as running:
            yield running


@pytest.fixture(scope="package")
def expected(stack: Stack) -> list[dict[str, object]]:
    """The rows of a task that nothing happened to."""
    task = Task.launch(stack)
    task.wait_success()
    return task.rows()


@pytest.fixture
def idle_stack(stack: Stack, expected: list[dict[str, object]]) -> None:
    """Every process is alive, and no task runs."""
    for name in ("code", "webserver", "daemon", "runs-1", "worker-1", "worker-2"):
        stack.wait_running(name)


@pytest.fixture
def task(stack: Stack, idle_stack: None) -> Task:
    """A task that has just been launched."""
    return Task.launch(stack)


@pytest.fixture(scope="package")
def measured() -> Iterator[Callable[[str, float], None]]:
    """Keeps how long recoveries took; `RECOVERY_REPORT` names the file for the docs' table."""
    found: dict[str, float] = {}
    yield lambda what, seconds: found.update({what: round(seconds, 1)})
    if path := os.environ.get("RECOVERY_REPORT"):
        Path(path).write_text(json.dumps(found, indent=2) + "\n")
