"""The connection to the ledger's PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import create_engine
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from mloc_dagster.errors import TransientError

CHANNEL = "mloc_ledger"
"""Rings when tasks were accepted, or somebody wishes something about them."""

PATIENCE = {
    "connect_timeout": 10,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""How long a server is waited for that has vanished without a word."""

_OPTIONS = {
    # Acceptance is a promise; a server that is set otherwise must not break it.
    "synchronous_commit": "on",
    # What is read often is in memory: with the default, 4, a page of tasks with a rare label is
    # looked for among all tasks, newest first, instead of in the labels' index.
    "random_page_cost": "1.1",
    # A request that waits for ever holds its thread; this one ends with "try again".
    "lock_timeout": "20s",
    # Compiling a statement takes longer than any of these statements.
    "jit": "off",
}

_POOL_SIZE = 8


def open_engine(url: str) -> Engine:
    """Returns an engine with a pool whose dead connections are noticed and replaced."""
    options = " ".join(f"-c {name}={value}" for name, value in _OPTIONS.items())
    return create_engine(
        make_url(url).set(drivername="postgresql+psycopg2"),
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_SIZE,
        pool_pre_ping=True,
        # Two that accept one request key see each other, and wait instead of failing.
        isolation_level="READ COMMITTED",
        connect_args={**PATIENCE, "options": options},
    )


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """Lends a connection; what was done is there, durably, when the block ends without an error.

    Raises:
        TransientError: If the database is away or has no room. A transaction that it was told to
            commit at that moment may be there or not.
    """
    try:
        with engine.begin() as connection:
            yield connection
    except PoolTimeout as error:
        raise TransientError(f"all connections to the database are in use: {error}") from error
    except DBAPIError as error:
        # Some ways of losing a connection have a class of their own.
        away = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
        if not away:
            raise
        raise TransientError(f"the database is away: {_first_line(error)}") from error


def _first_line(error: DBAPIError) -> str:
    return (str(error.orig).strip().splitlines() or ["no reason given"])[0]
