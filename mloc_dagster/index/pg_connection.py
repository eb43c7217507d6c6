"""Connections to a PostgreSQL with pgvector: a given one, or mloc's own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.home import (
    INDEX_ROLE,
    INDEX_SCHEMA,
    INDEX_SCHEMA_STATEMENTS,
    postgres_url,
)

_PATIENCE_S = 10
_LOCKS = 0x6D6C6F69
"""Which locks are those of builds; the second number of each says of which index."""

_TABLES = f"""
CREATE TABLE IF NOT EXISTS {INDEX_SCHEMA}.indexes (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    dimension integer NOT NULL,
    metric text NOT NULL,
    model text NOT NULL
);
CREATE TABLE IF NOT EXISTS {INDEX_SCHEMA}.versions (
    index_id integer NOT NULL REFERENCES {INDEX_SCHEMA}.indexes ON DELETE CASCADE,
    number integer NOT NULL,
    chunks bigint NOT NULL,
    build text NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    pruned boolean NOT NULL DEFAULT false,
    PRIMARY KEY (index_id, number)
);
"""


def connect(url: str | None) -> Any:
    """Connects for indexes; every statement is a transaction of its own unless told otherwise.

    Args:
        url: A PostgreSQL; None for mloc's own, which is started if it has to be.

    Raises:
        InputError: If it refuses the user or the database, or has no pgvector.
        TransientError: If it cannot be reached.
    """
    import psycopg2

    place = (url or postgres_url()).replace("+psycopg2", "", 1)
    try:
        connection = psycopg2.connect(place, connect_timeout=_PATIENCE_S)
    except psycopg2.OperationalError as error:
        if "connect" in str(error) and "FATAL" not in str(error):
            raise TransientError(f"PostgreSQL does not answer: {error}") from error
        raise InputError(f"PostgreSQL refuses its URL: {error}") from error
    connection.autocommit = True
    with connection.cursor() as cursor:
        if url is None:
            _become_owner(cursor)
        cursor.execute("SET hnsw.iterative_scan = 'strict_order'")
    return connection


def make_tables(connection: Any) -> None:
    """Makes what all indexes of a database share, unless it is there.

    Raises:
        InputError: If the user may not, or pgvector is not installed.
    """
    import psycopg2

    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", [f"{INDEX_SCHEMA}.versions"])
        if cursor.fetchone() == (True,):
            return
        try:
            with locked(connection, 0):
                cursor.execute("CREATE EXTENSION IF NOT EXISTS vector")
                # Even where it is there, only who may create one may say this.
                cursor.execute("SELECT to_regnamespace(%s)", [INDEX_SCHEMA])
                if cursor.fetchone() == (None,):
                    cursor.execute(f"CREATE SCHEMA {INDEX_SCHEMA}")
                cursor.execute(_TABLES)
        except psycopg2.Error as error:
            raise InputError(
                "cannot make indexes in this PostgreSQL: it needs the extension `vector` (0.8 or"
                f" newer), and a user that may create the schema {INDEX_SCHEMA}: {error}"
            ) from error


@contextmanager
def transaction(connection: Any) -> Generator[Any]:
    """Gives a cursor whose statements hold together or not at all."""
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        try:
            yield cursor
        except BaseException:
            with suppress(Exception):  # the connection itself may be gone
                cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")


@contextmanager
def locked(connection: Any, number: int) -> Generator[None]:
    """Keeps other builds of an index waiting; the server ends it where a process is killed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s, %s)", (_LOCKS, number))
        try:
            yield
        finally:
            with suppress(Exception):  # a connection that is gone has no lock
                cursor.execute("SELECT pg_advisory_unlock(%s, %s)", (_LOCKS, number))


@contextmanager
def build_lock(name: str) -> Generator[None]:
    """Keeps other builds of an index of another engine waiting, by mloc's own PostgreSQL."""
    import zlib

    connection = connect(None)
    try:
        # Apart from the numbers of pgvector's own indexes, which are positive.
        with locked(connection, -1 - (zlib.crc32(name.encode()) >> 1)):
            yield
    finally:
        connection.close()


def _become_owner(cursor: Any) -> None:
    """Makes what this connection creates everybody's who works with this home."""
    role = "SELECT pg_has_role(oid, 'MEMBER') FROM pg_roles WHERE rolname = %s"
    cursor.execute(role, [INDEX_ROLE])
    found = cursor.fetchone()
    if found is None:
        cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
        if cursor.fetchone() != (True,):
            return  # a PostgreSQL that was given: all belongs to its user
        cursor.execute("SELECT pg_advisory_lock(%s, 0)", [_LOCKS])
        for statement in INDEX_SCHEMA_STATEMENTS:
            cursor.execute(statement)
        cursor.execute("SELECT pg_advisory_unlock(%s, 0)", [_LOCKS])
        found = (True,)
    if found == (True,):
        cursor.execute(f"SET ROLE {INDEX_ROLE}")
