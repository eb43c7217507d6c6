"""Dagster's event log: written many events a commit, read as rows of all runs in one query.

Dagster commits each event twice: the row, and a notification that nobody listens to any more. A
sixteen-event step then waits for thirty-two commits. Here the events of a step, and those of every
thread that waits meanwhile, share one.

Dagster's own readers go run by run or type by type, and decode every event. The control plane
looks once a second, and needs the text of few.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import sqlalchemy as db
from dagster import DagsterEventType, EventLogEntry, deserialize_value
from dagster_postgres.event_log import PostgresEventLogStorage
from sqlalchemy import exists, select
from sqlalchemy.engine import Connection
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from mloc_dagster.redaction import redact_urls
from mloc_dagster.services.internals import (
    ASSET_CHECK_EVENTS,
    ASSET_EVENTS,
    ConcurrencySlotStatus,
    SqlEventLogStorage,
    SqlEventLogStorageTable,
)
from mloc_dagster.services.storages import DATABASE_AWAY, Pooled

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


_log = logging.getLogger(__name__)

Sink = Callable[[EventLogEntry], None]

_sink: ContextVar[Sink | None] = ContextVar("event_sink", default=None)

# Longer than a supervised PostgreSQL needs to recover and answer again.
_GIVE_UP_S = 120
_MAX_ROWS = 500


@contextmanager
def capturing(sink: Sink) -> Generator[None]:
    """Hands the events of this thread to `sink` instead of writing them, while it is open."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


def captured(event: EventLogEntry) -> bool:
    """Hands an event to the sink of this thread; false where nothing captures.

    Every event log that the fleet writes to asks this first.
    """
    sink = _sink.get()
    if sink is None:
        return False
    sink(event)
    return True


class _Batch:
    def __init__(self, entries: Sequence[EventLogEntry]) -> None:
        self.entries = entries
        self.done = False
        self.error: Exception | None = None


class EventLog(Pooled, PostgresEventLogStorage):
    """`PostgresEventLogStorage` with group commit."""

    def __init__(self, postgres_url: str) -> None:
        super().__init__(postgres_url)
        self._waiting: deque[_Batch] = deque()
        self._writer = threading.Lock()
        self._open = threading.local()
        self._known_columns: dict[str, bool] = {}

    def store_event(self, event: EventLogEntry) -> None:
        """Writes an event, or hands it to the sink of this thread."""
        if not captured(event):
            self.store_events([event])

    def store_events(self, entries: Sequence[EventLogEntry]) -> None:
        """Writes events in their order, all or none, and returns when they are durable.

        Whichever thread gets to write takes along what the others wait to write.

        Raises:
            sqlalchemy.exc.OperationalError: If the database stayed away for two minutes, or one
                of the other `DATABASE_AWAY`.
        """
        if not entries:
            return
        mine = _Batch(entries)
        self._waiting.append(mine)
        with self._writer:
            if not mine.done:
                self._write_waiting(mine)
        if mine.error is not None:
            raise mine.error

    def _write_waiting(self, mine: _Batch) -> None:
        batches: list[_Batch] = []
        while not (mine in batches and sum(len(each.entries) for each in batches) >= _MAX_ROWS):
            if not self._waiting:
                break
            batches.append(self._waiting.popleft())
        error: Exception | None = None
        try:
            self._write_patiently([entry for batch in batches for entry in batch.entries])
        except Exception as failure:  # noqa: BLE001 (each thread whose events these are raises it)
            error = failure
        for batch in batches:
            batch.done, batch.error = True, error

    def _write_patiently(self, entries: Sequence[EventLogEntry]) -> None:
        for attempt in Retrying(
            retry=retry_if_exception_type(DATABASE_AWAY),
            stop=stop_after_delay(_GIVE_UP_S),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            before_sleep=before_sleep_log(_log, logging.WARNING),
            reraise=True,
        ):
            with attempt:
                self._write(entries, again=attempt.retry_state.attempt_number > 1)

    def _write(self, entries: Sequence[EventLogEntry], *, again: bool) -> None:
        rows = [self._event_to_row(entry) for entry in entries]
        for row in rows:
            # Errors of other libraries quote the whole address.
            row["event"] = redact_urls(row["event"])
        with self._transaction() as connection:
            if again and self._is_there(connection, rows[0]):
                return
            result = connection.execute(
                SqlEventLogStorageTable.insert()
                .values(rows)
                .returning(SqlEventLogStorageTable.c.id)
            )
            ids = sorted(row[0] for row in result)
            for entry, event_id in zip(entries, ids, strict=True):
                self._index(connection, entry, event_id)

    @staticmethod
    def _is_there(connection: Connection, row: Mapping[str, object]) -> bool:
        """Returns whether a transaction was committed though the server died before it said so."""
        table = SqlEventLogStorageTable.c
        same = (table.run_id == row["run_id"]) & (table.event == row["event"])
        return bool(connection.execute(select(exists().where(same))).scalar())

    def _index(self, connection: Connection, entry: EventLogEntry, event_id: int) -> None:
        event = entry.dagster_event
        if event is None:
            return
        if event.event_type in ASSET_EVENTS and event.asset_key:
            self._store_asset_event_tags(connection, [entry], [event_id])
            self._store_asset_event(connection, entry, event_id)
        if event.event_type in ASSET_CHECK_EVENTS:
            self.store_asset_check_event(entry, event_id)

    @contextmanager
    def _transaction(self) -> Generator[Connection]:
        with super()._connect() as connection:
            transactional = connection.execution_options(isolation_level="READ COMMITTED")
            with transactional.begin():
                self._open.connection = transactional
                try:
                    yield transactional
                finally:
                    del self._open.connection

    @contextmanager
    def _connect(self) -> Generator[Connection]:  # type: ignore[override]
        # What Dagster writes beside an event belongs to the event's transaction.
        connection = getattr(self._open, "connection", None)
        if connection is not None:
            yield connection
        else:
            with super()._connect() as own:
                yield own

    def _claim_concurrency_slot(
        self, concurrency_key: str, run_id: str, step_key: str
    ) -> ConcurrencySlotStatus:
        # Dagster locks a free slot of a pool, and then takes it. Its connections commit after each
        # statement, so that the lock is gone in between, and two runs may get the same slot.
        with self._transaction():
            return super()._claim_concurrency_slot(concurrency_key, run_id, step_key)

    def _has_asset_key_col_on_connection(self, conn: Connection, column_name: str) -> bool:
        # Dagster inspects the table's columns at each asset event; they do not change.
        if column_name not in self._known_columns:
            known = super()._has_asset_key_col_on_connection(conn, column_name)
            self._known_columns[column_name] = known
        return self._known_columns[column_name]
