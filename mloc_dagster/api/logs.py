"""Logs of a task over HTTP, in pages or as server-sent events: its run's, its shards'."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated

from dagster import DagsterEventType, EventLogEntry
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from mloc_dagster.api.openapi import problems
from mloc_dagster.api.parameters import Cursor, TaskId
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.fleet import requeue_in
from mloc_dagster.ledger import TaskEntry
from mloc_dagster.ops import RunTask, step_error
from mloc_dagster.results import Folder
from mloc_dagster.services import EventLogCursor
from mloc_dagster.wire import LogEnd, LogLevel, LogLine, LogPage, TaskState

_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT[0-9:.]+Z) (.*)", re.DOTALL)
_MAX_CURSOR_BYTES = 100_000
_CHUNK_BYTES = 1 << 18
_BATCH = 2_000
"""Entries of a source that are put in order together with those of the others."""
_EARLIEST = datetime.min.replace(tzinfo=UTC)
RUN_SOURCE = "run"


class Place(BaseModel):
    """How far the sources are read.

    Attributes:
        event: Storage id of the run's last event.
        files: Bytes of each log file.
    """

    model_config = ConfigDict(extra="forbid")

    event: int = Field(default=0, ge=0)
    files: dict[str, int] = Field(default_factory=dict)


class Position(BaseModel):
    """Where somebody stopped reading: lines are given in batches, each in order of time.

    Attributes:
        run: The run whose events were read.
        start: Where the batch begins.
        stop: Where it ends; None before it was read.
        given: How many of its lines were read.
    """

    model_config = ConfigDict(extra="forbid")

    run: str = Field(default="", max_length=100)
    start: Place = Field(default_factory=Place)
    stop: Place | None = None
    given: int = Field(default=0, ge=0)

    def cursor(self) -> str:
        """Returns it as one word."""
        text = zlib.compress(self.model_dump_json(exclude_defaults=True).encode())
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    @classmethod
    def read(cls, cursor: str | None) -> Position:
        """Returns what a cursor means; raises a 422 `Refusal` for what is none."""
        if not cursor:
            return cls()
        try:
            packed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
            text = zlib.decompressobj().decompress(packed, _MAX_CURSOR_BYTES)
            return cls.model_validate_json(text)
        except (ValueError, zlib.error, ValidationError):
            raise Refusal(422, "invalid-cursor", "this cursor is none of these logs") from None


@dataclass(frozen=True, slots=True)
class Read:
    """An entry of a source.

    Attributes:
        at: When it was written.
        mark: Where its source is read on behind it.
        line: What it says; None if nothing.
    """

    at: datetime
    mark: int
    line: LogLine | None


@dataclass(frozen=True, slots=True)
class Source:
    """What was read of a source.

    Attributes:
        name: The log file; empty for the run.
        entries: In the order of the source.
        more: Whether it goes on behind them.
    """

    name: str
    entries: Sequence[Read]
    more: bool = False


def in_order(sources: Sequence[Source], start: Place) -> tuple[list[LogLine], Place]:
    """Returns lines of several sources in order of time, and how far that reads the sources.

    A source is read no further than the one that goes on is known: what comes next there may be
    earlier than the rest of the others.
    """
    known = [max(each.at for each in source.entries) for source in sources if source.more]
    horizon = min(known, default=None)
    stop = start.model_copy(deep=True)
    taken: list[tuple[datetime, LogLine]] = []
    for source in sources:
        for each in source.entries:
            if horizon is not None and each.at > horizon:
                break
            if source.name:
                stop.files[source.name] = each.mark
            else:
                stop.event = each.mark
            if each.line is not None:
                taken.append((each.at, each.line))
    taken.sort(key=itemgetter(0))
    return [line for _, line in taken], stop


class TaskLogs:
    """Reads on from a position, which moves with each line.

    Args:
        api: Who knows runs and folders.
        task_id: Whose logs.
        position: Where to begin.
        level: Lines of lower levels are passed over.
    """

    def __init__(self, api: ApiState, task_id: str, position: Position, level: LogLevel) -> None:
        self._api = api
        self._task_id = task_id
        self._level = logging.getLevelNamesMapping()[level]
        self._batch: list[LogLine] | None = None
        self.position = position

    def read(self, entry: TaskEntry, most: int) -> Iterator[LogLine]:
        """Yields at most so many lines of what came since.

        Args:
            entry: The task as it is now.
            most: How many lines.
        """
        left = most
        while left > 0 and (line := self._next(entry)) is not None:
            if logging.getLevelNamesMapping().get(line.level, logging.INFO) >= self._level:
                yield line
                left -= 1

    def _next(self, entry: TaskEntry) -> LogLine | None:
        position = self.position
        if position.run != (entry.run_id or ""):
            # Of another run; what was read of the files stays read.
            files = (position.stop or position.start).files
            self.position = position = Position(run=entry.run_id or "", start=Place(files=files))
            self._batch = None
        while True:
            if self._batch is None:
                self._batch = self._read_batch(entry)
            if position.given < len(self._batch):
                line = self._batch[position.given]
                position.given += 1
                if position.given == len(self._batch):
                    self._advance()
                return line
            moved = position.stop != position.start
            self._advance()
            if not moved:
                return None

    def _advance(self) -> None:
        position, self._batch = self.position, None
        position.start, position.stop, position.given = position.stop or position.start, None, 0

    def _read_batch(self, entry: TaskEntry) -> list[LogLine]:
        position, folder = self.position, self._api.store.task(self._task_id)
        start, stop = position.start, position.stop
        names = sorted(each for each in folder.list("logs") if each.endswith(".log"))
        read = [
            self._events(entry, start.event, None if stop is None else stop.event),
            *(
                self._file(
                    folder,
                    name,
                    start.files.get(name, 0),
                    None if stop is None else stop.files.get(name, 0),
                    ended=entry.state.ended,
                )
                for name in names
            ),
        ]
        lines, reached = in_order(read, start)
        position.stop = stop or reached
        return lines

    def _events(self, entry: TaskEntry, after: int, until: int | None) -> Source:
        if entry.run_id is None:
            return Source("", ())
        storage = self._api.fleet.instance().event_log_storage
        cursor = EventLogCursor.from_storage_id(after).to_string() if after else None
        found = storage.get_records_for_run(entry.run_id, cursor=cursor, limit=_BATCH)
        task = self._run_task(entry) if found.records else None
        entries = [
            Read(
                datetime.fromtimestamp(record.event_log_entry.timestamp, UTC),
                record.storage_id,
                _event_line(record.event_log_entry, task),
            )
            for record in found.records
            if until is None or record.storage_id <= until
        ]
        return Source("", entries, more=bool(entries) and until is None and found.has_more)

    def _run_task(self, entry: TaskEntry) -> RunTask | None:
        """Returns which of a run's steps are the task's; None for all."""
        if entry.task_id == entry.workflow_id:
            return None
        from mloc_dagster.tasks import find_workflows

        known = find_workflows(self._api.fleet.instance(), [entry.workflow_id]).get(
            entry.workflow_id
        )
        if known is None:
            return None
        return next((each for each in known.tasks() if each.task_id == entry.task_id), None)

    def _file(
        self, folder: Folder, name: str, start: int, until: int | None, *, ended: bool
    ) -> Source:
        source = name.removeprefix("logs/").removesuffix(".log")
        entries: list[Read] = []
        at, place = _EARLIEST, start
        try:
            with folder.open(name) as file:
                file.seek(start)
                while len(entries) < _BATCH and (raw := file.readline(_CHUNK_BYTES)):
                    whole = raw.endswith(b"\n") or len(raw) >= _CHUNK_BYTES
                    if not whole and not ended:
                        break  # the rest is about to be written
                    place += len(raw)
                    if until is not None and place > until:
                        break
                    line = _line(source, raw)
                    at = line.at or at  # without a time it belongs to the line before
                    entries.append(Read(at, place, line))
        except FileNotFoundError:
            return Source(name, ())
        return Source(name, entries, more=until is None and len(entries) == _BATCH)


_LEVELS: Mapping[DagsterEventType, int] = {
    DagsterEventType.RUN_START: logging.INFO,
    DagsterEventType.RUN_SUCCESS: logging.INFO,
    DagsterEventType.RUN_CANCELING: logging.INFO,
    DagsterEventType.RUN_CANCELED: logging.WARNING,
    DagsterEventType.STEP_UP_FOR_RETRY: logging.WARNING,
}
"""Levels of Dagster's events that it logs as DEBUG, and that a person wants to see."""


def _event_line(entry: EventLogEntry, task: RunTask | None) -> LogLine | None:
    event, step = entry.dagster_event, entry.step_key or ""
    text = entry.user_message or (event.message if event is not None else "") or ""
    level = entry.level if isinstance(entry.level, int) else logging.INFO
    if event is not None:
        level = max(level, _LEVELS.get(event.event_type, level))
        if event.is_step_failure:
            text = f"failed: {step_error(event)}"
        elif requeue_in(event) is not None:
            level = logging.WARNING
    if not text or (task is not None and step and not task.owns(step)):
        return None
    return LogLine(
        source=RUN_SOURCE,
        at=datetime.fromtimestamp(entry.timestamp, UTC),
        level=logging.getLevelName(level),
        text=f"{step}: {text}" if step else text,
    )


def _line(source: str, raw: bytes) -> LogLine:
    found = _STAMPED.match(raw.rstrip(b"\r\n"))
    text = (found[2] if found else raw.rstrip(b"\r\n")).decode("utf-8", "replace")
    return LogLine(source=source, at=_moment(found[1]) if found else None, text=text)


def _moment(stamp: bytes) -> datetime | None:
    try:
        return datetime.fromisoformat(stamp.decode())
    except ValueError:
        return None


router = APIRouter(prefix="/api/v1", tags=["tasks"])

_LOOK_EVERY_S = 0.5
_PING_EVERY_S = 15
_LINES_AT_ONCE = 500
_EVENT_STREAM = "text/event-stream"


@router.get(
    "/tasks/{task_id}/logs",
    response_model=LogPage,
    responses={
        200: {"content": {_EVENT_STREAM: {}}},
        **problems(404, 422, 429),
    },
    summary="Logs, paged or live",
)
async def logs(
    api: State,
    request: Request,
    task_id: TaskId,
    limit: Annotated[int, Query(ge=1, le=5_000, description="Lines on a page.")] = 1_000,
    cursor: Cursor = None,
    level: Annotated[
        LogLevel, Query(description="The lowest level to show; DEBUG has all of Dagster's events.")
    ] = "INFO",
    follow: Annotated[bool, Query(description="Live, until the task has ended.")] = False,
    last_event_id: Annotated[
        str | None, Header(max_length=8_000, description="Where a broken stream goes on.")
    ] = None,
) -> Response:
    """Returns the lines of a task's run and of its shards' log files, in order of time.

    With `follow=true`, or `Accept: text/event-stream`: events named `log`, each a line, then one
    named `end`.
    """
    live = follow or _EVENT_STREAM in request.headers.get("accept", "")
    position = Position.read(last_event_id if live and last_event_id else cursor)
    if live:
        await run_in_threadpool(api.task, task_id)  # a problem while there can be one
        return _follow(api, TaskLogs(api, task_id, position, level), task_id)
    reader = TaskLogs(api, task_id, position, level)
    return reply(await run_in_threadpool(_page, api, task_id, reader, limit))


def _page(api: ApiState, task_id: str, reader: TaskLogs, limit: int) -> LogPage:
    entry = api.task(task_id)
    lines = tuple(reader.read(entry, limit))
    return LogPage(
        task_id=task_id,
        count=len(lines),
        lines=lines,
        next_cursor=reader.position.cursor(),
        ended=entry.state.ended and not lines,
    )


def _follow(api: ApiState, reader: TaskLogs, task_id: str) -> Response:
    streams = api.metrics.streams
    if api.open_streams >= api.max_streams:
        detail = f"{api.max_streams} live logs are open (MLOC_API_MAX_STREAMS); read pages"
        raise Refusal(429, "too-many-streams", detail, headers={"Retry-After": "10"})

    async def events() -> AsyncIterator[ServerSentEvent]:
        api.open_streams += 1
        streams.inc()
        try:
            async for each in _events(api, reader, task_id):
                yield each
        finally:
            api.open_streams -= 1
            streams.dec()

    return EventSourceResponse(
        events(), ping=_PING_EVERY_S, send_timeout=api.limits.patience_s, sep="\n"
    )


async def _events(api: ApiState, reader: TaskLogs, task_id: str) -> AsyncIterator[ServerSentEvent]:
    while True:
        lines, state = await run_in_threadpool(_some, api, reader, task_id)
        for line, cursor in lines:
            yield ServerSentEvent(line.model_dump_json(), event="log", id=cursor, sep="\n")
        if not lines and state.ended:
            end = LogEnd(task_id=task_id, status=state)
            yield ServerSentEvent(
                end.model_dump_json(), event="end", id=reader.position.cursor(), sep="\n"
            )
            return
        if not lines:
            await asyncio.sleep(_LOOK_EVERY_S)


def _some(
    api: ApiState, reader: TaskLogs, task_id: str
) -> tuple[list[tuple[LogLine, str]], TaskState]:
    # The state first: what is written before it ends is read after it ended.
    entry = api.task(task_id)
    found = [(line, reader.position.cursor()) for line in reader.read(entry, _LINES_AT_ONCE)]
    return found, entry.state
