"""A process that has PyTorch and TRL imported, and from which trainings are forked.

Importing takes longer than the start of a small training. It is done once a worker, by a server of
`multiprocessing` that runs nothing itself: each training is a process of its own as before, which
begins with everything imported and shares those pages with the others.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

CHILD = "mloc_dagster.executors.training.child"
PRELOADED = "mloc_dagster.executors.training.preloaded"


def fork_training(
    job: Path,
    environment: Mapping[str, str],
    *,
    output: int,
    pipes: Mapping[str, int],
) -> ForkServerProcess:
    """Starts a process that trains.

    Args:
        job: The job's file.
        environment: All of its environment variables.
        output: A file for what it prints.
        pipes: Files that it gets too; each one's number there is told by the variable of that name.
    """
    files = {name: _Handed(each) for name, each in {**pipes, "": output}.items()}
    process = _server().Process(
        target=_begin, args=(job, dict(environment)), kwargs={"files": files}
    )
    process.start()
    return process


class _Handed:
    """A file that is sent along when the process starts."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return _received, (DupFd(self._number),)


def _received(sent: Any) -> int:
    return sent.detach()


@cache
def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


def _begin(job: Path, environment: dict[str, str], *, files: Mapping[str, int]) -> None:
    """The first thing that a forked process does."""
    os.setpgid(0, 0)
    with open(os.devnull) as nothing:  # noqa: PTH123  a device
        os.dup2(nothing.fileno(), 0)
    for number in (1, 2):
        os.dup2(files[""], number)
    os.environ.clear()
    os.environ.update(environment, **{name: str(each) for name, each in files.items() if name})
    if _met_a_gpu():
        for each in files.values():
            os.set_inheritable(each, True)
        os.execv(sys.executable, [sys.executable, "-m", CHILD, str(job)])  # noqa: S606
    from mloc_dagster.executors.training.child import main

    try:
        main(job)
    finally:
        # Forked processes skip these, and wandb, for one, writes its last lines then.
        atexit._run_exitfuncs()  # noqa: SLF001


def _met_a_gpu() -> bool:
    """Tells if an import has opened CUDA's driver, which does not survive a fork."""
    return "libcuda.so" in Path("/proc/self/maps").read_text()
