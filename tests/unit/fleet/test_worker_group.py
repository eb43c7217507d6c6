"""Worker groups: real child processes that are started, restarted, and drained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

INHERITED = ("MLOC_HOME", "MLOC_RESULTS_URL", "MLOC_ENGINE")

# Stands in for `mloc worker`: notes how it was called, then waits to be drained.
WORKER = """
import json, os, signal, sys
from pathlib import Path
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
name = os.environ["MLOC_WORKER_NAME"]
known = {key: value for key, value in os.environ.items() if key.startswith(("CUDA", "MLOC"))}
note = Path(sys.argv[1], f"{name}.{os.getpid()}.json")
note.with_suffix(".part").write_text(json.dumps({"arguments": sys.argv[2:], **known}))
note.with_suffix(".part").rename(note)
code = os.environ.get("END_WITH")
if code:
    sys.exit(int(code))
signal.sigwait({signal.SIGTERM})
Path(sys.argv[1], name + ".drained").touch()
"""

GROUP = """
import sys
from mloc_dagster.fleet.worker.group import run_worker_group
command = [sys.executable, "-c", {worker!r}, {folder!r}]
sys.exit(run_worker_group({groups}, ["gpu", "gpu.l4"], {{"rack": "7"}}, command=command))
"""


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 300
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.02)


@contextmanager
def running_group(
    folder: Path, groups: list[tuple[int, ...]], **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    code = GROUP.format(worker=WORKER, folder=str(folder), groups=groups)
    group = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "MLOC_WORKER_NAME": "node", **environment},
        start_new_session=True,
    )
    try:
        yield group
    finally:
        group.kill()  # its workers follow: it has asked for that
        group.wait()
        until(lambda: not any(is_alive(int(note.suffixes[0][1:])) for note in notes(folder)))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def notes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def read(note: Path) -> dict[str, Any]:
    return json.loads(note.read_text())


def test_each_group_is_a_worker_and_sigterm_drains_all(tmp_path: Path) -> None:
    with running_group(tmp_path, [(0, 1), (2, 3)]) as group:
        until(lambda: len(notes(tmp_path)) == 2)
        first, second = map(read, notes(tmp_path))
        group.terminate()
        assert group.wait(timeout=300) == 0
    assert first == {
        "arguments": [
            "--queues",
            "gpu,gpu.l4",
            "--tag",
            "rack=7",
            "--gpus",
            "all",
            "--gpus-per-worker",
            "2",
        ],
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "MLOC_WORKER_NAME": "node-gpu0-1",
        "MLOC_MACHINE_SHARE": "2",
        **{key: first[key] for key in first if key in INHERITED},
    }
    assert second["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert sorted(path.name for path in tmp_path.glob("*.drained")) == [
        "node-gpu0-1.drained",
        "node-gpu2-3.drained",
    ]


def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    with running_group(tmp_path, [(0,), (1,)]) as group:
        until(lambda: len(notes(tmp_path)) == 2)
        first = notes(tmp_path)[0]
        os.kill(int(first.suffixes[0][1:]), signal.SIGKILL)
        until(lambda: len(notes(tmp_path)) == 3)
        assert len(list(tmp_path.glob("node-gpu0.*.json"))) == 2
        group.send_signal(signal.SIGINT)
        assert group.wait(timeout=300) == 0
    assert len(list(tmp_path.glob("*.drained"))) == 2


def test_what_the_user_has_to_mend_is_not_tried_again(tmp_path: Path) -> None:
    with running_group(tmp_path, [(0,), (1,)], END_WITH="2") as group:
        assert group.wait(timeout=300) == 2
    assert len(notes(tmp_path)) == 2


def test_a_worker_that_somebody_drained_stays_away(tmp_path: Path) -> None:
    with running_group(tmp_path, [(0,), (1,)]) as group:
        until(lambda: len(notes(tmp_path)) == 2)
        for note in notes(tmp_path):
            os.kill(int(note.suffixes[0][1:]), signal.SIGTERM)
        assert group.wait(timeout=300) == 0
    assert len(notes(tmp_path)) == 2


def test_workers_do_not_outlive_a_group_that_was_killed(tmp_path: Path) -> None:
    with running_group(tmp_path, [(0,)]) as group:
        until(lambda: len(notes(tmp_path)) == 1)
        group.kill()
        until(lambda: (tmp_path / "node-gpu0.drained").exists())
