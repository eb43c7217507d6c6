"""The embedded PostgreSQL is shared by processes and threads that come, go and are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.stack import until

pytestmark = pytest.mark.e2e

USE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from mloc_dagster.home import postgres_url
with ThreadPoolExecutor(8) as pool:
    urls = set(pool.map(lambda _: postgres_url(), range(100)))
print(*urls, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        yield Path(folder)


class User:
    """A process that uses the database in many threads, until it is told to leave."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USE],
            env={**os.environ, "MLOC_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        self.urls = self.process.stdout.readline().split()

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def server(home: Path) -> psutil.Process:
    return psutil.Process(int((home / "postgres" / "postmaster.pid").read_text().split()[0]))


def test_a_server_runs_until_its_last_user_leaves(home: Path) -> None:
    first = User(home)
    found = server(home)
    second = User(home)
    assert first.urls == second.urls
    assert len(first.urls) == 1
    second.leave()
    assert found.is_running()
    first.leave()
    assert not found.is_running()
    User(home).leave()  # and can be started anew


def test_a_user_that_was_killed_does_not_count(home: Path) -> None:
    first, second = User(home), User(home)
    found = server(home)
    first.kill()
    assert found.is_running()
    second.leave()
    assert not found.is_running()


def test_a_server_that_was_killed_is_started_again(home: Path) -> None:
    first = User(home)
    server(home).kill()
    second = User(home)
    first.leave()
    found = server(home)
    assert found.is_running()
    second.leave()
    assert not found.is_running()


def test_a_server_ends_when_its_home_is_deleted(home: Path) -> None:
    user = User(home)
    found = server(home)
    subprocess.run(["rm", "-r", str(home)], check=True)
    user.leave()
    until(lambda: not found.is_running(), "the server ends")
    home.mkdir()
