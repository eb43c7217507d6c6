"""Which of the processes of a training is named when they end together, whoever is heard first."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from mloc_dagster.errors import TransientError
from mloc_dagster.executors.training import processes
from mloc_dagster.executors.training.messages import PIPE_VARIABLE, Failed

LOST = "RuntimeError: Connection reset by peer"

ACT = """
import os, signal, sys
from mloc_dagster.executors.training.messages import Failed, encode_line
baton, act, detail, at = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
if sys.argv[5] == "second":
    os.read(baton, 1)  # returns when the first has ended
if act == "kill":
    os.kill(os.getpid(), int(detail))
if act == "fail":
    said = encode_line(Failed("TransientError", detail, at))
    os.write(int(os.environ["MLOC_TRAINING_PIPE"]), said)
sys.exit(int(detail) if act == "exit" else 1)
"""


class Child:
    """A process that looks like one of multiprocessing's."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], files: list[int]):
        self._process = subprocess.Popen(
            [sys.executable, "-c", ACT, *arguments], env=dict(environment), pass_fds=files
        )
        self.pid = self._process.pid
        self.sentinel = os.pidfd_open(self.pid)
        self.kill = self._process.kill

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def join(self) -> None:
        self._process.wait()
        os.close(self.sentinel)


Act = tuple[str, str, float]

KILLED: Act = ("kill", "9", 0)
ABORTED: Act = ("kill", "6", 0)
VANISHED: Act = ("exit", "3", 0)
FAILED: Act = ("fail", "ValueError: no room", 1.0)
LOST_TOUCH: Act = ("fail", LOST, 2.0)

BY_SIGNAL = "process {} of 2 was killed by signal 9"


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(
    ("acts", "named"),
    [
        ([LOST_TOUCH, KILLED], BY_SIGNAL.format(2)),
        ([KILLED, LOST_TOUCH], BY_SIGNAL.format(1)),
        ([LOST_TOUCH, VANISHED], "process 2 of 2 ended with exit code 3"),
        ([LOST_TOUCH, FAILED], "ValueError: no room"),
        ([FAILED, LOST_TOUCH], "ValueError: no room"),
        ([ABORTED, KILLED], BY_SIGNAL.format(2)),
        ([FAILED, ABORTED], "ValueError: no room; process 2 of 2 was killed by signal 6 as well"),
    ],
)
def test_the_cause_is_named_whichever_process_is_heard_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, acts: list[Act], named: str, first: int
) -> None:
    baton, held = os.pipe()

    def fork(
        job: Path, environment: Mapping[str, str], *, output: int, pipes: Mapping[str, int]
    ) -> Child:
        rank = int(environment["RANK"])
        act, detail, at = acts[rank]
        number = pipes[PIPE_VARIABLE]
        own = held if rank == first else baton
        place = "first" if rank == first else "second"
        return Child(
            [str(own), act, detail, str(at), place],
            {**environment, PIPE_VARIABLE: str(number)},
            [own, number],
        )

    monkeypatch.setattr(processes, "fork_training", fork)
    started = processes.TrainingProcesses(
        tmp_path / "job.json", ranks=2, output=tmp_path / "out", silence_s=60
    )
    with started:
        os.close(held)
        assert named in what_ended(started)
    os.close(baton)


def what_ended(started: processes.TrainingProcesses) -> str:
    try:
        *_, last = started.messages(lambda: False)
    except TransientError as error:
        return str(error)
    assert isinstance(last, Failed)
    return last.message
