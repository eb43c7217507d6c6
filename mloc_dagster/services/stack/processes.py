"""Every process of a stack, found by what it carries in its environment."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from mloc_dagster.home import StackLayout, is_supervised, orphans_of, postmaster
from mloc_dagster.services.stack.plan import STACK

_KILLED_S = 10.0
_DATABASES = ("postgres", "redis-server")


def stack_processes(layout: StackLayout) -> list[psutil.Process]:
    """Returns the processes of a home's stack, whoever their parent is now.

    PostgreSQL's processes write their title over their environment: they are found by the folder
    in which they work.
    """
    this = psutil.Process()
    mine = {this.pid, *(each.pid for each in this.parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(STACK) == str(layout.home)
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
        except psutil.Error:
            continue  # it is gone, or somebody else's
    found |= {each.pid: each for each in _postgres(layout)}
    return [process for pid, process in found.items() if pid not in mine]


def _postgres(layout: StackLayout) -> list[psutil.Process]:
    server = postmaster(layout.postgres)
    if server is None:
        return orphans_of(layout.postgres)
    # Without a stack `mloc run` starts a server of its own on the same folder.
    if not is_supervised(server):
        return []
    try:
        return [server, *server.children(recursive=True)]
    except psutil.Error:
        return [server]


def stop_processes(processes: Sequence[psutil.Process], patience_s: float) -> list[psutil.Process]:
    """Asks processes to stop, databases last, and kills what is left after `patience_s`.

    Returns:
        What not even SIGKILL ended.
    """
    databases = [each for each in processes if _name(each) in _DATABASES]
    # Without their database the others would spend their patience on trying to reach it.
    others = [each for each in processes if each not in databases]
    return [*_stop(others, patience_s), *_stop(databases, patience_s)]


def _stop(processes: Sequence[psutil.Process], patience_s: float) -> list[psutil.Process]:
    for process in processes:
        # PostgreSQL would wait at SIGTERM until its last client has left.
        _signal(process, signal.SIGINT if _name(process) == "postgres" else signal.SIGTERM)
    alive = _wait(processes, patience_s)
    for process in alive:
        _signal(process, signal.SIGKILL)
    return _wait(alive, _KILLED_S)


def _wait(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Like `psutil.wait_procs`, but a zombie counts as gone: its parent may never look."""
    deadline = time.monotonic() + timeout_s
    alive = [each for each in processes if _lives(each)]
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = [each for each in alive if _lives(each)]
    return alive


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # it has just ended, as it should
        process.send_signal(number)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
