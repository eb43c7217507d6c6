"""Files and batches of the routes below `/v1`: what their callers were told, durably."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any

from pydantic import JsonValue
from sqlalchemy import Column, ColumnElement, Table, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine import Connection, Engine

from mloc_dagster.errors import InputError
from mloc_dagster.ledger.database import batches, files, tasks, transaction
from mloc_dagster.wire import ENDED


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """A file.

    Attributes:
        file_id: Its id.
        filename: What its sender calls it.
        purpose: `batch` or `batch_output`.
        bytes: Its size.
        folder: The folder of the results store that it is in.
        name: Its name there.
        created_at: When it came, or was written.
        deleted: Whether it was deleted.
    """

    file_id: str
    filename: str
    purpose: str
    bytes: int
    folder: str
    name: str
    created_at: datetime
    deleted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchEntry:
    """A batch.

    Attributes:
        batch_id: Its id.
        request_hash: Of the request that made it.
        input_file_id: The file with its requests.
        endpoint: What answers them.
        completion_window: As given.
        metadata: As given.
        model: What the requests name; None if that is not one.
        requests: How many there are.
        errors: What fails the file as a whole.
        task_id: The task that answers it; None if the file is wrong.
        created_at: When it was accepted.
        cancelling_at: When somebody first asked to stop it.
        settled: What it came to, when its task ended; None before.
        settled_for: When the task ended for which that holds.
    """

    batch_id: str
    request_hash: str
    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: Mapping[str, str] | None
    model: str | None
    requests: int
    errors: Sequence[Mapping[str, JsonValue]] = field(default_factory=list)
    task_id: str | None
    created_at: datetime
    cancelling_at: datetime | None = None
    settled: Mapping[str, JsonValue] | None = None
    settled_for: datetime | None = None


@dataclass(frozen=True, slots=True)
class PageOf:
    """Which part of a list is wanted.

    Attributes:
        limit: So many at most.
        after: The id of the object before the first.
        ascending: Whether the oldest comes first.
    """

    limit: int
    after: str | None = None
    ascending: bool = False


_FILE = [files.c[each.name] for each in fields(FileEntry)]
_BATCH = [batches.c[each.name] for each in fields(BatchEntry)]


class OpenaiObjects:
    """What the ledger knows of files and batches. Each method is one transaction.

    Args:
        engine: Of a database with the ledger's tables.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # Files

    def add_file(self, entry: FileEntry) -> FileEntry:
        """Adds a file; returns the one that is there under its id, which may be an earlier one."""
        with transaction(self._engine) as connection:
            connection.execute(insert(files).values(asdict(entry)).on_conflict_do_nothing())
            return _files(connection, files.c.file_id == entry.file_id)[0]

    def file(self, file_id: str) -> FileEntry | None:
        """Returns a file; None if there is none, or none any more."""
        with transaction(self._engine) as connection:
            found = _files(connection, files.c.file_id == file_id, ~files.c.deleted)
            return next(iter(found), None)

    def files(self, wanted: PageOf, purpose: str | None) -> tuple[Sequence[FileEntry], bool]:
        """Returns a page of files, and whether more follow.

        Raises:
            InputError: If `after` is no file.
        """
        conditions = [~files.c.deleted]
        if purpose is not None:
            conditions.append(files.c.purpose == purpose)
        with transaction(self._engine) as connection:
            rows, more = _page(connection, files, files.c.file_id, _FILE, conditions, wanted)
        return [FileEntry(**row) for row in rows], more

    def delete_file(self, file_id: str) -> bool:
        """Notes that a file is not wanted any more; returns whether it was there."""
        with transaction(self._engine) as connection:
            deleted = connection.execute(
                update(files)
                .where(files.c.file_id == file_id, ~files.c.deleted)
                .values(deleted=True)
            )
            return deleted.rowcount > 0

    def unneeded_files(self, purpose: str) -> Sequence[FileEntry]:
        """Returns deleted files that no unfinished batch reads, until they are `removed`."""
        at_work = (
            select(batches.c.batch_id)
            .join(tasks, tasks.c.task_id == batches.c.task_id)
            .where(batches.c.input_file_id == files.c.file_id, tasks.c.state.not_in(ENDED))
        )
        with transaction(self._engine) as connection:
            return _files(
                connection,
                files.c.purpose == purpose,
                files.c.deleted,
                ~files.c.removed,
                ~at_work.exists(),
            )

    def removed(self, file_ids: Collection[str]) -> None:
        """Notes that the bytes of files are gone."""
        with transaction(self._engine) as connection:
            connection.execute(
                update(files).where(files.c.file_id.in_(file_ids)).values(removed=True)
            )

    # Batches

    def add_batch(self, entry: BatchEntry) -> BatchEntry:
        """Adds a batch; returns the one that is there under its id, which may be an earlier one."""
        with transaction(self._engine) as connection:
            connection.execute(insert(batches).values(asdict(entry)).on_conflict_do_nothing())
            return _batches(connection, batches.c.batch_id == entry.batch_id)[0]

    def batch(self, batch_id: str) -> BatchEntry | None:
        """Returns a batch; None if there is none."""
        with transaction(self._engine) as connection:
            return next(iter(_batches(connection, batches.c.batch_id == batch_id)), None)

    def batches(self, wanted: PageOf) -> tuple[Sequence[BatchEntry], bool]:
        """Returns a page of batches, and whether more follow.

        Raises:
            InputError: If `after` is no batch.
        """
        with transaction(self._engine) as connection:
            rows, more = _page(connection, batches, batches.c.batch_id, _BATCH, [], wanted)
        return [BatchEntry(**row) for row in rows], more

    def cancelling(self, batch_id: str) -> None:
        """Notes when somebody asked to stop a batch; the first time stays."""
        now = func.coalesce(batches.c.cancelling_at, func.clock_timestamp())
        with transaction(self._engine) as connection:
            connection.execute(
                update(batches).where(batches.c.batch_id == batch_id).values(cancelling_at=now)
            )

    def unsettled(self) -> Sequence[BatchEntry]:
        """Returns the batches whose tasks have ended since they were settled last."""
        news = or_(
            batches.c.settled_for.is_(None),
            batches.c.settled_for.is_distinct_from(tasks.c.ended_at),
        )
        with transaction(self._engine) as connection:
            found = connection.execute(
                select(*_BATCH)
                .join(tasks, tasks.c.task_id == batches.c.task_id)
                .where(tasks.c.state.in_(ENDED), news)
            )
            return [BatchEntry(**row) for row in found.mappings()]

    def settle(
        self,
        batch_id: str,
        ended_at: datetime,
        settled: Mapping[str, JsonValue],
        outputs: Sequence[FileEntry],
    ) -> None:
        """Notes what a batch came to, with the files that it left.

        Args:
            batch_id: The batch.
            ended_at: When its task ended.
            settled: What it came to.
            outputs: The files.
        """
        with transaction(self._engine) as connection:
            for each in outputs:
                values = {"bytes": each.bytes, "created_at": each.created_at}
                connection.execute(
                    insert(files)
                    .values(asdict(each))
                    .on_conflict_do_update(index_elements=[files.c.file_id], set_=values)
                )
            connection.execute(
                update(batches)
                .where(batches.c.batch_id == batch_id)
                .values(settled=dict(settled), settled_for=ended_at)
            )


def _files(connection: Connection, *conditions: ColumnElement[bool]) -> list[FileEntry]:
    found = connection.execute(select(*_FILE).where(*conditions).order_by(files.c.place))
    return [FileEntry(**row) for row in found.mappings()]


def _batches(connection: Connection, *conditions: ColumnElement[bool]) -> list[BatchEntry]:
    found = connection.execute(select(*_BATCH).where(*conditions).order_by(batches.c.place))
    return [BatchEntry(**row) for row in found.mappings()]


def _page(
    connection: Connection,
    table: Table,
    name: Column[str],
    columns: Sequence[Column[Any]],
    conditions: Sequence[ColumnElement[bool]],
    wanted: PageOf,
) -> tuple[list[dict[str, Any]], bool]:
    place = table.c.place
    statement = select(*columns).where(*conditions)
    if wanted.after is not None:
        after = connection.scalar(select(place).where(name == wanted.after))
        if after is None:
            raise InputError(f"after: there is no {wanted.after[:200]!a}")
        statement = statement.where(place > after if wanted.ascending else place < after)
    order = place.asc() if wanted.ascending else place.desc()
    found = connection.execute(statement.order_by(order).limit(wanted.limit + 1)).mappings()
    rows = [dict(row) for row in found]
    return rows[: wanted.limit], len(rows) > wanted.limit
