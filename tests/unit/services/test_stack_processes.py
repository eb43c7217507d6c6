"""What an earlier stack left behind: found, named, and stopped, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.home import StackLayout, supervisor_process
from mloc_dagster.services.stack.lifecycle import clear_remains
from mloc_dagster.services.stack.processes import stack_processes, stop_processes
from mloc_dagster.services.stack.supervisor import SupervisorGone, component_states

_STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
_WAITS = "print('up', flush=True); input()"


@pytest.fixture
def layout(tmp_path: Path) -> StackLayout:
    created = StackLayout(tmp_path / "home")
    created.create()
    return created


def _start(home: Path, code: str = _WAITS) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "MLOC_STACK": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.fixture
def left_over(layout: StackLayout) -> Iterator[subprocess.Popen[str]]:
    """A process of the stack, whose supervisor is gone."""
    with _start(layout.home) as process:
        yield process
        process.kill()


@pytest.fixture
def neighbour(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of another home's stack."""
    with _start(tmp_path / "neighbour") as process:
        yield process
        process.kill()


def test_only_this_homes_processes_are_found(
    layout: StackLayout, left_over: subprocess.Popen[str], neighbour: subprocess.Popen[str]
) -> None:
    assert [each.pid for each in stack_processes(layout)] == [left_over.pid]
    said: list[str] = []
    clear_remains(layout, said.append)
    assert len(said) == 1
    assert "lost its supervisor" in said[0]
    assert left_over.wait(timeout=5) < 0
    assert neighbour.poll() is None
    assert stack_processes(layout) == []


def test_forks_of_a_dead_supervisor_are_called_what_they_are(layout: StackLayout) -> None:
    with _start(layout.home, f"open('/proc/self/comm', 'w').write('mloc-dispatcher'); {_WAITS}"):
        said: list[str] = []
        clear_remains(layout, said.append)
        assert said[0].endswith("stopping what it left: dispatcher")


def test_who_does_not_stop_is_killed(layout: StackLayout) -> None:
    with _start(layout.home, _STUBBORN + _WAITS) as process:
        assert stop_processes(stack_processes(layout), patience_s=0.2) == []
        assert process.wait(timeout=5) == -9


def test_a_stale_pid_file_is_removed_and_told(layout: StackLayout) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait(timeout=20)
    for pid in (ended.pid, os.getpid()):  # a dead process; one that only has the same pid
        layout.pid_file.write_text(f"{pid}\n")
        assert supervisor_process(layout) is None
        said: list[str] = []
        clear_remains(layout, said.append)
        assert said == [f"removed the stale pid file {layout.pid_file}"]
        assert not layout.pid_file.exists()


def test_a_fresh_home_has_nothing_to_tell(layout: StackLayout) -> None:
    clear_remains(layout, pytest.fail)
    assert supervisor_process(layout) is None
    with pytest.raises(SupervisorGone):
        component_states(layout)
