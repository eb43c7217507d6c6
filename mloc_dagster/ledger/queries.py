"""Reading the ledger, the number of tasks in each state included."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import JsonValue
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Row,
    Table,
    Text,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Connection

from mloc_dagster.errors import InputError
from mloc_dagster.ledger.acceptance import label_pairs
from mloc_dagster.ledger.database import SCHEMA, documents, metadata, submissions, tasks
from mloc_dagster.ledger.model import TaskEntry, TaskFilter
from mloc_dagster.services import AdvisoryLock
from mloc_dagster.wire import TaskState

_STATES = {each.value: each for each in TaskState}
_NAMES = tuple(each.name for each in fields(TaskEntry))

ENTRY = [tasks.c[each] for each in _NAMES]
"""The columns of an entry."""


def entry_of(row: Row[Any]) -> TaskEntry:
    """Returns a row of these columns as an entry."""
    # The dispatcher reads thousands at a time: a row's own mapping would take twice as long.
    known: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    known["state"] = _STATES[known["state"]]
    known["depends_on"] = tuple(known["depends_on"])
    return TaskEntry(**known)


def entries(
    connection: Connection, *conditions: ColumnElement[bool], limit: int | None = None
) -> list[TaskEntry]:
    """Returns the tasks that fulfil all conditions, in the order in which they were accepted."""
    found = connection.execute(
        select(*ENTRY).where(*conditions).order_by(tasks.c.place).limit(limit)
    )
    return [entry_of(row) for row in found]


def by_id(connection: Connection, ids: Collection[str]) -> dict[str, TaskEntry]:
    """Returns the tasks of some ids that there are."""
    found = entries(connection, tasks.c.task_id.in_(ids)) if ids else []
    return {each.task_id: each for each in found}


def page(
    connection: Connection, wanted: TaskFilter, *, limit: int, cursor: str | None
) -> tuple[Sequence[TaskEntry], str | None]:
    """Returns a page of tasks, the newest first, and where the next one goes on.

    Raises:
        InputError: If the cursor is none of ours.
    """
    statement = select(*ENTRY).where(*_conditions(wanted))
    if cursor is not None:
        statement = statement.where(tasks.c.place < place_of(cursor))
    found = connection.execute(statement.order_by(tasks.c.place.desc()).limit(limit + 1))
    known = [entry_of(row) for row in found]
    more = len(known) > limit
    return known[:limit], str(known[limit - 1].place) if more else None


def place_of(cursor: str) -> int:
    """Returns the place that a cursor stands for.

    Raises:
        InputError: If it stands for none.
    """
    if cursor.isascii() and cursor.isdecimal() and len(cursor) < 19:
        return int(cursor)
    raise InputError(f"{cursor!r} is no cursor; expected the `next` of an earlier page")


def _conditions(wanted: TaskFilter) -> list[ColumnElement[bool]]:
    exact = {
        tasks.c.owner: wanted.owner,
        tasks.c.origin: wanted.origin,
        tasks.c.template: wanted.template,
        tasks.c.task_type: wanted.task_type,
        tasks.c.workflow_id: wanted.workflow_id,
        tasks.c.worker_id: wanted.worker_id,
    }
    found = [column == value for column, value in exact.items() if value is not None]
    if wanted.states is not None:
        found.append(tasks.c.state.in_(wanted.states))
    if wanted.labels:
        found.append(tasks.c.label_pairs.contains(label_pairs(dict(wanted.labels))))
    if wanted.submitted_after is not None:
        found.append(tasks.c.submitted_at >= wanted.submitted_after)
    if wanted.submitted_before is not None:
        found.append(tasks.c.submitted_at < wanted.submitted_before)
    return found


def documents_of(
    connection: Connection, workflow_ids: Collection[str]
) -> dict[str, Mapping[str, JsonValue]]:
    """Returns what was submitted, by workflow; what nobody knows is left out."""
    of_it = submissions.c.content_hash == documents.c.content_hash
    found = connection.execute(
        select(submissions.c.workflow_id, documents.c.document)
        .join(documents, of_it)
        .where(submissions.c.workflow_id.in_(workflow_ids))
    )
    return {row.workflow_id: row.document for row in found}


def content_hash(connection: Connection, workflow_id: str) -> str | None:
    """Returns the hash of what was submitted; None if there is no such workflow."""
    return connection.scalar(
        select(submissions.c.content_hash).where(submissions.c.workflow_id == workflow_id)
    )


# Folding 2,000 rows takes 3 ms, and so does reading them.
_FOLDED_AFTER = 2_000

state_counts = Table(
    "state_counts",
    metadata,
    Column("state", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
)

_FUNCTIONS = f"""
CREATE FUNCTION {SCHEMA}.fold_state_counts() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock({AdvisoryLock.FOLD_STATE_COUNTS:d}) THEN
        WITH folded AS (DELETE FROM {SCHEMA}.state_counts RETURNING state, number)
        INSERT INTO {SCHEMA}.state_counts
        SELECT state, sum(number) FROM folded GROUP BY state HAVING sum(number) <> 0;
    END IF;
END
$$;
CREATE FUNCTION {SCHEMA}.note_states() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO {SCHEMA}.state_counts SELECT state, count(*) FROM added GROUP BY state;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO {SCHEMA}.state_counts SELECT state, -count(*) FROM removed GROUP BY state;
    ELSE
        INSERT INTO {SCHEMA}.state_counts
        SELECT state, sum(number)
        FROM (SELECT state, 1 AS number FROM added UNION ALL SELECT state, -1 FROM removed) AS each
        GROUP BY state HAVING sum(number) <> 0;
    END IF;
    IF random() < {1 / _FOLDED_AFTER} THEN
        PERFORM {SCHEMA}.fold_state_counts();
    END IF;
    RETURN NULL;
END
$$
"""  # noqa: S608 (constants)

_SEEN_BY = {
    "INSERT": "NEW TABLE AS added",
    "DELETE": "OLD TABLE AS removed",
    "UPDATE": "OLD TABLE AS removed NEW TABLE AS added",
}


def create_counts(connection: Connection) -> None:
    """Begins to count, once the tables are there; counts the tasks that there are already."""
    if inspect(connection).has_table(state_counts.name, SCHEMA):
        return
    connection.execute(text(f"LOCK TABLE {SCHEMA}.tasks IN SHARE ROW EXCLUSIVE MODE"))
    state_counts.create(connection)
    connection.execute(text(_FUNCTIONS))
    for event, tables in _SEEN_BY.items():
        connection.execute(
            text(
                f"CREATE TRIGGER note_states_on_{event.lower()} AFTER {event} ON {SCHEMA}.tasks "
                f"REFERENCING {tables} FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.note_states()"
            )
        )
    there = f"SELECT state, count(*) FROM {SCHEMA}.tasks GROUP BY state"  # noqa: S608 (a constant)
    connection.execute(text(f"INSERT INTO {SCHEMA}.state_counts {there}"))


def counts(connection: Connection) -> dict[TaskState, int]:
    """Returns how many tasks are in each state."""
    total = func.sum(state_counts.c.number)
    found = connection.execute(select(state_counts.c.state, total).group_by(state_counts.c.state))
    return dict.fromkeys(TaskState, 0) | {TaskState(state): int(number) for state, number in found}
