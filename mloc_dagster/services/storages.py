"""Dagster's PostgreSQL storages with a pool that keeps its connections and notices dead ones."""

from __future__ import annotations

from dagster_postgres.run_storage import PostgresRunStorage
from dagster_postgres.schedule_storage import PostgresScheduleStorage
from dagster_postgres.utils import DagsterPostgresException, create_pg_engine
from sqlalchemy.engine import Engine
from sqlalchemy.exc import InterfaceError, OperationalError

DATABASE_AWAY = (OperationalError, InterfaceError, DagsterPostgresException)
"""What a call raises when the database is away; the last one after Dagster was patient for 10 s."""


class Pooled:
    """Replaces Dagster's pool, which keeps one connection and closes every other after use.

    A connection is tried before it is lent: after a restart of the server each pooled one is dead,
    and connecting anew waits for the server to come back.
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
            pool_pre_ping=True,
            connect_args={"options": f"-c statement_timeout={statement_timeout}"},
        )


class RunStorage(Pooled, PostgresRunStorage):
    """Runs and their tags."""


class ScheduleStorage(Pooled, PostgresScheduleStorage):
    """Schedules, sensors and their ticks."""
