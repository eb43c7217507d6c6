"""A Dagster instance on a real PostgreSQL for the session, and templates run on it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from mloc_dagster.services import open_instance
from mloc_dagster.settings import settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def session_home() -> Iterator[Path]:
    """A home with one embedded PostgreSQL for all tests; its path is short, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def session_instance(session_home: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance that lives as long as the session."""
    before = os.environ.get("MLOC_HOME")
    os.environ["MLOC_HOME"] = str(session_home)
    settings.cache_clear()
    with open_instance() as instance:
        yield instance
    settings.cache_clear()
    if before is None:
        del os.environ["MLOC_HOME"]


@pytest.fixture
def instance(
    session_instance: dg.DagsterInstance, session_home: Path, monkeypatch: pytest.MonkeyPatch
) -> dg.DagsterInstance:
    """The session's instance, for a test with a results folder of its own."""
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    settings.cache_clear()
    return session_instance


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def dagster_cli(instance: dg.DagsterInstance) -> Command:
    """Runs a `dagster` command from the project's root, on the session's database."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dagster", *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    return run
