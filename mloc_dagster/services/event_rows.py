"""Dagster's event log as rows: what happened to all runs since an id, in one query.

Dagster's own readers go run by run or type by type, and decode every event. The control plane
looks once a second, and needs the text of few.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import sqlalchemy as db
from dagster import DagsterEventType, EventLogEntry
from dagster._core.storage.event_log import SqlEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster_shared.serdes import deserialize_value

_WITH_TEXT = [
    each.value
    for each in (
        DagsterEventType.STEP_FAILURE,
        DagsterEventType.STEP_UP_FOR_RETRY,
        DagsterEventType.RUN_FAILURE,
        DagsterEventType.RUN_CANCELED,
    )
]

_table = SqlEventLogStorageTable.c

# Engine events are many; those that say something about tasks carry metadata of ours.
_IS_NOTE = db.and_(
    _table.dagster_event_type == DagsterEventType.ENGINE_EVENT.value,
    _table.step_key.is_not(None),
    _table.event.contains('"mloc/'),
)
_COLUMNS = (
    _table.id,
    _table.run_id,
    _table.dagster_event_type,
    _table.step_key,
    _table.timestamp,
    # Events are many kilobytes each; only what went badly is read as a whole.
    db.case(
        (_table.dagster_event_type.in_(_WITH_TEXT), _table.event),
        (_IS_NOTE, _table.event),
        else_=None,
    ).label("event"),
)


@dataclass(frozen=True, slots=True)
class EventRow:
    """An entry of the event log.

    Attributes:
        id: Its storage id.
        run_id: The run.
        type: What happened; None for a line of log.
        step_key: The step, where it is about one.
        ts: When.
        text: The serialized entry, of failures and of engine events with metadata of ours.
    """

    id: int
    run_id: str
    type: DagsterEventType | None
    step_key: str | None
    ts: datetime
    text: str | None = None

    def entry(self) -> EventLogEntry | None:
        """Returns the whole entry, where there is a `text`."""
        return None if self.text is None else deserialize_value(self.text, EventLogEntry)


def newest_id(storage: SqlEventLogStorage) -> int:
    """Returns the highest id there is; 0 when the log is empty."""
    return storage.get_maximum_record_id() or 0


def rows_after(storage: SqlEventLogStorage, after: int, limit: int) -> list[EventRow]:
    """Returns the entries behind an id, in order; lines of log too, so that gaps show."""
    return _rows(storage, db.select(*_COLUMNS).where(_table.id > after).limit(limit))


def rows_in(storage: SqlEventLogStorage, ranges: Iterable[tuple[int, int]]) -> list[EventRow]:
    """Returns the entries within ranges of ids, both ends included."""
    within = [_table.id.between(first, last) for first, last in ranges]
    return _rows(storage, db.select(*_COLUMNS).where(db.or_(*within))) if within else []


def rows_of_type(
    storage: SqlEventLogStorage, run_ids: Iterable[str], types: Iterable[DagsterEventType]
) -> list[EventRow]:
    """Returns the entries of some types, of some runs."""
    runs, names = sorted(set(run_ids)), [each.value for each in types]
    if not runs:
        return []
    query = db.select(*_COLUMNS).where(
        _table.run_id.in_(runs), _table.dagster_event_type.in_(names)
    )
    return _rows(storage, query)


def setback_rows(storage: SqlEventLogStorage, run_id: str) -> list[EventRow]:
    """Returns the entries of a run about failed attempts, and those with metadata of ours."""
    failed = _table.dagster_event_type == DagsterEventType.STEP_UP_FOR_RETRY.value
    query = db.select(*_COLUMNS).where(_table.run_id == run_id, db.or_(failed, _IS_NOTE))
    return _rows(storage, query)


def _rows(storage: SqlEventLogStorage, query: db.Select) -> list[EventRow]:
    with storage.index_connection() as connection:
        found = cast("Sequence[tuple]", connection.execute(query.order_by(_table.id)).all())
    return [
        EventRow(
            id=number,
            run_id=run_id,
            type=DagsterEventType(kind) if kind else None,
            step_key=step_key,
            # The column has no zone; Dagster writes UTC.
            ts=stamp.replace(tzinfo=UTC),
            text=text,
        )
        for number, run_id, kind, step_key, stamp, text in found
    ]
