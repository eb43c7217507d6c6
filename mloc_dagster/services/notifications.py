"""PostgreSQL's notifications, on a connection of their own."""

from __future__ import annotations

import select
from types import TracebackType
from typing import Self

import psycopg2
from psycopg2 import extensions
from sqlalchemy.engine import make_url

from mloc_dagster.errors import TransientError

PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How long a server is waited for that has vanished without a word."""


class Notifications:
    """Listens to a channel.

    A notification is sent when the transaction that brings news has committed.

    Args:
        url: The database.
        channel: What to listen to.

    Raises:
        TransientError: If the database is away.
    """

    def __init__(self, url: str, channel: str) -> None:
        address = make_url(url).set(drivername="postgresql")
        patient = address.update_query_dict({key: str(value) for key, value in PATIENCE.items()})
        try:
            self._connection: extensions.connection = psycopg2.connect(
                patient.render_as_string(hide_password=False)
            )
            self._connection.set_isolation_level(extensions.ISOLATION_LEVEL_AUTOCOMMIT)
            with self._connection.cursor() as cursor:
                cursor.execute(f"LISTEN {channel}")
        except psycopg2.Error as error:
            raise TransientError(f"the database is away: {error}") from error

    def wait(self, timeout_s: float) -> bool:
        """Returns whether there is news; false after so many seconds without.

        Raises:
            TransientError: If the connection is lost.
        """
        try:
            if not self._connection.notifies:
                ready, _, _ = select.select([self._connection], [], [], timeout_s)
                if ready:
                    self._connection.poll()
        except psycopg2.Error as error:
            raise TransientError(f"the database is away: {error}") from error
        heard = bool(self._connection.notifies)
        self._connection.notifies.clear()
        return heard

    def lead(self, lock: int) -> bool:
        """Returns whether this process holds a lock that one at a time can; it ends with it.

        Raises:
            TransientError: If the connection is lost.
        """
        try:
            with self._connection.cursor() as cursor:
                cursor.execute("SELECT pg_try_advisory_lock(%s)", (lock,))
                row = cursor.fetchone()
                return row is not None and bool(row[0])
        except psycopg2.Error as error:
            raise TransientError(f"the database is away: {error}") from error

    def close(self) -> None:
        """Stops listening, and lets go of the lock."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
