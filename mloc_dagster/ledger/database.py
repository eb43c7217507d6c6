"""The ledger's tables in a schema beside Dagster's, its connection and locks."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    inspect,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError as PoolTimeout

from mloc_dagster.errors import TransientError
from mloc_dagster.services import PATIENCE, AdvisoryLock

SCHEMA = "mloc"

metadata = MetaData(schema=SCHEMA)

_now = text("clock_timestamp()")

documents = Table(
    "documents",
    metadata,
    Column("content_hash", Text, primary_key=True),
    # Not JSONB, which has no NUL and forgets the order of keys.
    Column("document", JSON, nullable=False),
)
"""Each document once, however often it is submitted."""

submissions = Table(
    "submissions",
    metadata,
    Column("workflow_id", Text, primary_key=True),
    Column("request_key", Text, unique=True),
    Column("request_hash", Text),
    Column("content_hash", Text, nullable=False),
    Column("submitted_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

tasks = Table(
    "tasks",
    metadata,
    Column("place", BigInteger, Identity(), primary_key=True),
    Column("task_id", Text, nullable=False, unique=True),
    Column("workflow_id", Text, nullable=False, index=True),
    Column("node", Text, nullable=False),
    Column("task_type", Text, nullable=False),
    Column("template", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("origin", Text, nullable=False, server_default="api"),
    Column("labels", JSONB, nullable=False),
    # The planner knows how common an element of an array is, and not so of a document's parts.
    Column("label_pairs", ARRAY(Text), nullable=False),
    Column("depends_on", ARRAY(Text), nullable=False),
    Column("state", Text, nullable=False),
    Column("waiting_for", Text, nullable=False, server_default=""),
    Column("run_id", Text),
    Column("runs", Integer, nullable=False, server_default="0"),
    Column("retry_rows", Boolean, nullable=False, server_default="false"),
    Column("batch_key", Text),
    Column("due", DateTime(timezone=True)),
    Column("submitted_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("started_at", DateTime(timezone=True)),
    Column("ended_at", DateTime(timezone=True)),
    Column("worker_id", Text),
    Column("rows", Integer),
    Column("rows_finished", Integer),
    Column("errors", Integer),
    Column("error", Text, nullable=False, server_default=""),
    Column("cancelling", Boolean, nullable=False, server_default="false"),
    Column("untold", Boolean, nullable=False, server_default="false"),
)

runs = Table(
    "runs",
    metadata,
    Column("place", BigInteger, Identity(), primary_key=True),
    Column("run_id", Text, nullable=False, unique=True),
    Column("workflow_id", Text),
    Column("task_ids", ARRAY(Text), nullable=False),
    Column("handed_over", Boolean, nullable=False, server_default="false"),
    Column("retry_rows", Boolean, nullable=False, server_default="false"),
    Column("ended", Boolean, nullable=False, server_default="false"),
    Column("planned_at", DateTime(timezone=True), nullable=False, server_default=_now),
)

followed = Table("followed", metadata, Column("place", BigInteger, nullable=False))
"""How far Dagster's runs have been looked through, in one row."""

files = Table(
    "files",
    metadata,
    Column("place", BigInteger, Identity(), primary_key=True),
    Column("file_id", Text, nullable=False, unique=True),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    # Where in the results store, below its root, which may move.
    Column("folder", Text, nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    # Kept when they are deleted: pages go on after a file that was deleted since.
    Column("deleted", Boolean, nullable=False, server_default="false"),
    Column("removed", Boolean, nullable=False, server_default="false"),
)
"""Files of the routes below `/v1`."""

batches = Table(
    "batches",
    metadata,
    Column("place", BigInteger, Identity(), primary_key=True),
    Column("batch_id", Text, nullable=False, unique=True),
    Column("request_hash", Text, nullable=False),
    Column("input_file_id", Text, nullable=False, index=True),
    Column("endpoint", Text, nullable=False),
    Column("completion_window", Text, nullable=False),
    Column("metadata", JSON(none_as_null=True)),
    Column("model", Text),
    Column("requests", Integer, nullable=False),
    Column("errors", JSON, nullable=False),
    Column("task_id", Text, index=True),
    Column("created_at", DateTime(timezone=True), nullable=False, server_default=_now),
    Column("cancelling_at", DateTime(timezone=True)),
    Column("settled", JSON(none_as_null=True)),
    Column("settled_for", DateTime(timezone=True)),
)
"""Batches of the routes below `/v1`; `settled` outlives the task."""

_newest = tasks.c.place.desc()

Index("tasks_by_state", tasks.c.state, _newest)
Index("tasks_by_owner", tasks.c.owner, _newest)
Index("tasks_by_template", tasks.c.template, _newest)
Index("tasks_by_type", tasks.c.task_type, _newest)
Index("tasks_by_worker", tasks.c.worker_id, _newest)
# What is new lies unsorted, and is read from end to end, until there are so many KiB of it.
Index(
    "tasks_by_labels",
    tasks.c.label_pairs,
    postgresql_using="gin",
    postgresql_with={"gin_pending_list_limit": 256},
)
Index("tasks_by_time", tasks.c.submitted_at)
Index(
    "tasks_to_dispatch",
    tasks.c.due.asc().nulls_last(),
    tasks.c.place,
    postgresql_where=text("run_id IS NULL AND state = 'PENDING'"),
)
Index("tasks_to_cancel", tasks.c.place, postgresql_where=text("cancelling"))
Index("tasks_to_tell_of", tasks.c.place, postgresql_where=text("untold"))
Index("runs_open", runs.c.place, postgresql_where=text("NOT ended"))


def create_tables(connection: Connection) -> None:
    """Creates what is missing; several processes may do so at once."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": AdvisoryLock.CREATE_TABLES}
    )
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    metadata.create_all(connection, [documents, submissions, tasks, runs, followed, files, batches])
    # Only where it is missing: the statement waits for every reader, also with nothing to do.
    columns = {each["name"] for each in inspect(connection).get_columns("tasks", SCHEMA)}
    if tasks.c.origin.name not in columns:
        connection.execute(
            text(f"ALTER TABLE {SCHEMA}.tasks ADD COLUMN origin text NOT NULL DEFAULT 'api'")
        )


CHANNEL = "mloc_ledger"
"""Rings when tasks were accepted, or somebody wishes something about them."""

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


_LOCK = text("""
    SELECT FROM mloc.tasks WHERE task_id = ANY (:ids) ORDER BY task_id FOR NO KEY UPDATE
""")


def lock_tasks(connection: Connection, ids: Collection[str]) -> None:
    """Waits until nobody else changes some tasks, and keeps others from it until the commit.

    Every writer of several tasks begins with this. Statements that follow see the tasks as they are
    then, and an `UPDATE` would lock them in any order.
    """
    connection.execute(_LOCK, {"ids": list(ids)})


def keep_contents(connection: Connection) -> None:
    """Keeps request keys and documents from being deleted until the commit.

    Who accepts relies on those that are there already, and other transactions do not see yet that
    it does.
    """
    connection.execute(
        text("SELECT pg_advisory_xact_lock_shared(:key)"), {"key": AdvisoryLock.KEEP_CONTENTS}
    )


def may_delete_contents(connection: Connection) -> None:
    """Waits for those that keep contents, and lets no other accept until the commit."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:key)"), {"key": AdvisoryLock.KEEP_CONTENTS}
    )
