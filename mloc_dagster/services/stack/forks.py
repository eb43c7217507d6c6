"""Components as forks of their supervisor, which loads once what all of them need.

Importing Dagster and what is built on it takes each process seconds, and a hundred megabytes. The
supervisor imports it while the databases start, has one thread, and then forks what other
supervisors would execute: a component starts at once, also when it comes back, and shares that
memory.
"""

from __future__ import annotations

import atexit
import gc
import os
import runpy
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NoReturn

_SHARED = (
    "dagster_webserver.app",
    "mloc_dagster.cli.service_commands",
    "mloc_dagster.definitions",
    "mloc_dagster.dispatch.process",
    "mloc_dagster.fleet.worker.process",
    "mloc_dagster.sensors.daemon",
    "mloc_dagster.services.stack.code_server",
    "uvicorn",
)
"""What several components import. Nothing of it may start a thread, as numpy does, or a connection:
a fork would have only half of it."""

FORK_PREFIX = "mloc-"
"""What the name of a fork's process begins with; the component's follows."""

_WAIT_FOR = "mloc_dagster.services.stack.wait_for"
_INTERRUPTED = 130


def is_fork(argv: Sequence[str]) -> bool:
    """Returns whether a command is carried out by a fork: what waits for others has the time."""
    return list(argv[:3]) == [sys.executable, "-m", _WAIT_FOR]


def load() -> None:
    """Imports what components share; returns at once when that is done already."""
    if all(name in sys.modules for name in _SHARED):
        return
    gc.disable()  # half of the time would go into looking at what stays
    try:
        for name in _SHARED:
            import_module(name)
    finally:
        gc.enable()
    gc.collect()
    gc.freeze()  # a fork that looked at it would copy it


def become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Carries out a command in this fork, and ends it.

    Args:
        argv: A command for which `is_fork` holds.
        environment: All of it.
    """
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    with suppress(OSError):  # what `ps` and `top` show
        name = f"{FORK_PREFIX}{environment.get('SUPERVISOR_PROCESS_NAME', '')}"
        Path("/proc/self/comm").write_text(name, encoding="ascii")
    # Nothing above this frame may go on: the files of the supervisor's objects are closed, and
    # their numbers are those of others.
    code = 1
    try:
        code = _carried_out(argv)
    finally:
        threading._shutdown()  # noqa: SLF001 # pyright: ignore[reportAttributeAccessIssue]
        atexit._run_exitfuncs()  # noqa: SLF001
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _carried_out(argv: Sequence[str]) -> int:
    try:
        from mloc_dagster.services.stack.wait_for import awaited_command

        command = awaited_command(argv[3:])
        sys.argv = list(command[2:])  # the first becomes the module's file
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return _exit_code(end.code)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BaseException:  # noqa: BLE001 (as the interpreter does at the end of a process)
        traceback.print_exc()
        return 1
    return 0


def _exit_code(said: str | int | None) -> int:
    if isinstance(said, str):
        sys.stderr.write(f"{said}\n")
        return 1
    return said or 0
