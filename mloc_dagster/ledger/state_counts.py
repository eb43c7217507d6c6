"""How many tasks are in each state, without counting them.

Each statement that writes tasks adds to `mloc.state_counts` by how much it changed the numbers;
their sums are the answer. Nobody waits for anybody, as with one row that all would update. Now and
then a writer folds the table into one row a state.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Table, Text, func, inspect, select, text
from sqlalchemy.engine import Connection

from mloc_dagster.ledger.tables import SCHEMA, metadata
from mloc_dagster.services.advisory_locks import AdvisoryLock
from mloc_dagster.wire import TaskState

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
