"""Dagster's PostgreSQL storages on a pool that notices dead connections."""

from __future__ import annotations

import os
from datetime import datetime
from functools import cached_property, lru_cache
from time import monotonic

import psycopg2
from dagster import DagsterEvent, DagsterEventType
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.utils import DagsterPostgresException, create_pg_engine
from sqlalchemy import event, func, select
from sqlalchemy.engine import Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry

DATABASE_AWAY = (
    OperationalError,
    InterfaceError,
    # SQLAlchemy lets the driver's own errors through where it sets a connection's isolation.
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    DagsterPostgresException,
)
"""What a call raises when the database is away; the last one after Dagster was patient for 10 s."""

_USED_AT = "used_at"

# Less than a PostgreSQL that was killed needs to answer again.
_TRUSTED_S = 0.5


class Pooled:
    """Replaces Dagster's pool, which keeps one connection and closes every other after use.

    A connection that was idle for a while is tried before it is lent: after a restart of the server
    each pooled one is dead, and connecting anew waits for the server to come back. One that was
    used just now is not: under load the trials would be a seventh of a run worker's time.
    """

    _engine: Engine
    postgres_url: str

    def optimize_for_webserver(
        self, statement_timeout: int, pool_recycle: int, max_overflow: int
    ) -> None:
        """Keeps up to `max_overflow` connections, together with the other storages of the process.

        Args:
            statement_timeout: Milliseconds a statement may take.
            pool_recycle: Seconds after which a connection is replaced.
            max_overflow: Connections kept; a burst may open twice as many beyond.
        """
        self._engine.dispose()
        self._engine = _pooled(
            os.getpid(), self.postgres_url, statement_timeout, pool_recycle, max_overflow
        )


@lru_cache(maxsize=4)
def _pooled(
    _pid: int, postgres_url: str, statement_timeout: int, pool_recycle: int, size: int
) -> Engine:
    """Returns the one engine of a process, which a fork must not share, for a database."""
    engine = create_pg_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        pool_size=size,
        max_overflow=2 * size,  # a thread may ask one storage in the midst of another one's work
        pool_recycle=pool_recycle,
        connect_args={"options": f"-c statement_timeout={statement_timeout}"},
    )

    def try_idle(connection: DBAPIConnection, record: ConnectionPoolEntry, _: object) -> None:
        idle_s = monotonic() - record.info.get(_USED_AT, 0.0)
        if idle_s < _TRUSTED_S:
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("the pooled connection is dead") from error

    event.listen(engine, "connect", _note_use)
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", try_idle)
    return engine


def _note_use(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = monotonic()


QUEUE_CHANNEL = "mloc_queue"
"""Rings when a run is queued, or one ends and leaves room for another."""

_CHANGES_QUEUE = (
    DagsterEventType.RUN_ENQUEUED,
    DagsterEventType.RUN_SUCCESS,
    DagsterEventType.RUN_FAILURE,
    DagsterEventType.RUN_CANCELED,
)


class RunStorage(Pooled, PostgresRunStorage):
    """Runs and their tags.

    Dagster looks at the columns of its table whenever it reads or writes a run; once is enough.
    """

    @cached_property
    def _has_run_stats(self) -> bool:
        return super().has_run_stats_index_cols()

    def handle_run_event(
        self, run_id: str, event: DagsterEvent, update_timestamp: datetime | None = None
    ) -> None:
        """Writes down what an event makes of its run, and notifies whoever serves the queue."""
        super().handle_run_event(run_id, event, update_timestamp)
        if event.event_type in _CHANGES_QUEUE:
            with self.connect() as connection:
                connection.execute(select(func.pg_notify(QUEUE_CHANNEL, "")))

    def has_run_stats_index_cols(self) -> bool:
        """Returns whether runs have a start and an end time."""
        return self._has_run_stats


class ScheduleStorage(Pooled, PostgresScheduleStorage):
    """Schedules, sensors and their ticks."""
