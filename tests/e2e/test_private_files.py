"""What mloc writes is its owner's alone: state, logs, sockets, results."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api_server import ECHO
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a path that is short, as sockets want; of what somebody wrote there before."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        old = Path(folder, "logs")
        old.mkdir(mode=0o755)
        yield Path(folder)


def _open_to_others(folder: Path) -> list[str]:
    """Returns what others than its owner could read, write or enter, if they could come there."""
    found = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            # PostgreSQL keeps its folder, a socket that only it lets others write to in there.
            if path.is_symlink() or (path.parent.name == "postgres" and path.is_socket()):
                continue
            if stat.S_IMODE(path.lstat().st_mode) & 0o077:
                found.append(f"{path.relative_to(folder)} {stat.filemode(path.lstat().st_mode)}")
    return found


def _run_a_task(stack: Stack) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{stack.api_port}", trust_env=False) as client:
        upload = {"template": ("t.yaml", ECHO), "file": ("rows.txt", "one\n")}
        task = client.post("/api/v1/tasks", files=upload).raise_for_status().json()["tasks"][0]
        place = f"/api/v1/tasks/{task['task_id']}"
        until(lambda: client.get(place).json()["status"] == "DONE", "the task is done")


def test_state_and_results_are_their_owners_alone(home: Path) -> None:
    with Stack(home, workers=1, run_workers=1, api=True) as stack:
        done = stack.mloc("run", "echo", "--quiet")
        assert done.returncode == 0, done.stderr
        _run_a_task(stack)
        assert stat.S_IMODE(home.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
        assert _open_to_others(home) == []
        assert (stack.layout.redis / "appendonly.aof").exists()
        assert list((home / "results").glob("*/responses.json"))
