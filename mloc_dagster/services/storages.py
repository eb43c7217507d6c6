"""Dagster's PostgreSQL storages on a pool that notices dead connections."""

from __future__ import annotations

from functools import cached_property
from time import monotonic

import psycopg2
from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.utils import DagsterPostgresException, create_pg_engine
from sqlalchemy import event
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
        """Keeps up to `max_overflow` connections.

        Args:
            statement_timeout: Milliseconds a statement may take.
            pool_recycle: Seconds after which a connection is replaced.
            max_overflow: Connections kept; a burst may open as many again.
        """
        self._engine.dispose()
        self._engine = create_pg_engine(
            self.postgres_url,
            isolation_level="AUTOCOMMIT",
            pool_size=max_overflow,
            max_overflow=max_overflow,
            pool_recycle=pool_recycle,
            connect_args={"options": f"-c statement_timeout={statement_timeout}"},
        )
        event.listen(self._engine, "connect", _note_use)
        event.listen(self._engine, "checkin", _note_use)
        event.listen(self._engine, "checkout", self._try_idle)

    def _try_idle(
        self, connection: DBAPIConnection, record: ConnectionPoolEntry, _: object
    ) -> None:
        idle_s = monotonic() - record.info.get(_USED_AT, 0.0)
        if idle_s < _TRUSTED_S:
            return
        try:
            self._engine.dialect.do_ping(connection)
        except self._engine.dialect.loaded_dbapi.Error as error:
            raise InvalidatePoolError("the pooled connection is dead") from error


def _note_use(connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = monotonic()


class RunStorage(Pooled, PostgresRunStorage):
    """Runs and their tags.

    Dagster looks at the columns of its table whenever it reads or writes a run; once is enough.
    """

    @cached_property
    def _has_run_stats(self) -> bool:
        return super().has_run_stats_index_cols()

    def has_run_stats_index_cols(self) -> bool:
        """Returns whether runs have a start and an end time."""
        return self._has_run_stats


class ScheduleStorage(Pooled, PostgresScheduleStorage):
    """Schedules, sensors and their ticks."""
