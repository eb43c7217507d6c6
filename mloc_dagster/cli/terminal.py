"""The terminal and the process of `mloc`: exit codes, debugging, OpenMP, silence of libraries."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

OK = 0
FAILED = 1
"""A task failed."""

BAD_INPUT = 2
"""Something the user wrote or named is wrong; also a wrong command line."""

INTERRUPTED = 130
"""Ctrl-C, as shells have it: 128 + SIGINT."""

TERMINATED = 143
"""SIGTERM: 128 + SIGTERM."""


DEBUG = "MLOC_DEBUG"


def debugging() -> bool:
    """Tells whether tracebacks and the output of libraries are wanted."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


MAX_LOG_BYTES = 5_000_000


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where the user looks, whatever happens to file descriptors 1 and 2.

    Attributes:
        out: Standard output: results.
        err: Standard error: progress and what went wrong.
        log: Where everything else goes; None when it goes to the terminal.
    """

    out: Console
    err: Console
    log: Path | None


@contextmanager
def quiet_terminal(*, redirect: bool) -> Iterator[Terminal]:
    """Yields the terminal; until the block ends, everyone else writes into a log file.

    This works on file descriptors: Dagster's output capture, native libraries and child
    processes all follow.

    Args:
        redirect: False leaves the terminal to everyone, for debugging.
    """
    if not redirect:
        yield Terminal(Console(highlight=False), Console(stderr=True, highlight=False), None)
        return
    log = _log_file()
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    out, err = (os.fdopen(os.dup(each), "w", encoding="utf-8") for each in saved)
    try:
        os.dup2(log_fd, 1)
        os.dup2(log_fd, 2)
        yield Terminal(Console(file=out, highlight=False), Console(file=err, highlight=False), log)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)
        os.close(log_fd)
        out.close()
        err.close()


def _log_file() -> Path:
    from mloc_dagster.settings import settings

    folder = settings().home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "run.log"
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(folder / "run.log.1")
    return log
