"""A batch is answered by one process at a time, and a dead one bars nobody."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mloc_dagster.cli.batch_files import answering_alone
from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

HOLD = """
import os, sys
from mloc_dagster.cli.batch_files import answering_alone
with answering_alone(sys.argv[1]):
    if (child := os.fork()) == 0:  # an engine that outlives the command
        os.close(1)
        sys.stdin.read()
        os._exit(0)
    print("held", flush=True)
    os.waitpid(child, 0)
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    settings.cache_clear()


def test_the_second_process_is_told_of_the_first_and_follows_its_death() -> None:
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, "batch-a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "held\n"
        said = f"task batch-a is running in process {first.pid}; wait for it"
        with pytest.raises(InputError, match=said), answering_alone("batch-a"):
            pass
        with answering_alone("batch-b"):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with answering_alone("batch-a"):
            pass
    finally:
        first.kill()
        first.stdin.close()
        first.stdout.close()
        first.wait()
