"""The ledger's tables, in a schema of their own beside Dagster's."""

from __future__ import annotations

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
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSON, JSONB
from sqlalchemy.engine import Connection

from mloc_dagster.services.advisory_locks import AdvisoryLock

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
    metadata.create_all(connection, [documents, submissions, tasks, runs])
