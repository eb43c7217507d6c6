"""A task's logs: Dagster's events of its run, and the files that its shards leave."""

from __future__ import annotations

import base64
import logging
import re
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime

from dagster import EventLogEntry
from dagster._core.event_api import EventLogCursor
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState
from mloc_dagster.client.models import LogLine
from mloc_dagster.ledger.model import TaskEntry
from mloc_dagster.ops.run_tags import RunTask
from mloc_dagster.results.store import Folder

_STAMPED = re.compile(rb"(\d{4}-\d\d-\d\dT[0-9:.]+Z) (.*)", re.DOTALL)
_MAX_CURSOR_BYTES = 100_000
_CHUNK_BYTES = 1 << 18
RUN_SOURCE = "run"


class Position(BaseModel):
    """Where somebody stopped reading.

    Attributes:
        run: The run whose events were read.
        event: Dagster's cursor in it.
        files: Bytes read of each log file.
    """

    model_config = ConfigDict(extra="forbid")

    run: str = Field(default="", max_length=100)
    event: str = Field(default="", max_length=1_000)
    files: dict[str, int] = Field(default_factory=dict)

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


class TaskLogs:
    """Reads on from a position, which moves with each line.

    Args:
        api: Who knows runs and folders.
        task_id: Whose logs.
        position: Where to begin.
    """

    def __init__(self, api: ApiState, task_id: str, position: Position) -> None:
        self._api = api
        self._task_id = task_id
        self.position = position

    def read(self, entry: TaskEntry, most: int) -> Iterator[LogLine]:
        """Yields at most so many lines of what came since, the run's first.

        Args:
            entry: The task as it is now.
            most: How many lines.
        """
        left = most
        for line in self._events(entry, left):
            yield line
            left -= 1
        folder = self._api.store.task(self._task_id)
        for name in sorted(each for each in folder.list("logs") if each.endswith(".log")):
            if left <= 0:
                return
            for line in self._file(folder, name, left, ended=entry.state.ended):
                yield line
                left -= 1

    def _events(self, entry: TaskEntry, most: int) -> Iterator[LogLine]:
        if entry.run_id is None:
            return
        if self.position.run != entry.run_id:
            self.position.run, self.position.event = entry.run_id, ""
        storage = self._api.fleet.instance().event_log_storage
        task = self._run_task(entry)
        more = True
        while more and most > 0:
            found = storage.get_records_for_run(
                entry.run_id, cursor=self.position.event or None, limit=most
            )
            more = found.has_more
            for record in found.records:
                cursor = EventLogCursor.from_storage_id(record.storage_id)
                self.position.event = cursor.to_string()
                line = _event_line(record.event_log_entry, task)
                if line is not None:
                    yield line
                    most -= 1

    def _run_task(self, entry: TaskEntry) -> RunTask | None:
        """Returns which of a run's steps are the task's; None for all."""
        if entry.task_id == entry.workflow_id:
            return None
        from mloc_dagster.tasks.workflows import workflows

        known = workflows(self._api.fleet.instance(), [entry.workflow_id]).get(entry.workflow_id)
        if known is None:
            return None
        return next((each for each in known.tasks() if each.task_id == entry.task_id), None)

    def _file(self, folder: Folder, name: str, most: int, *, ended: bool) -> Iterator[LogLine]:
        source = name.removeprefix("logs/").removesuffix(".log")
        start = max(0, self.position.files.get(name, 0))
        try:
            with folder.open(name) as file:
                file.seek(start)
                while most > 0 and (raw := file.readline(_CHUNK_BYTES)):
                    whole = raw.endswith(b"\n") or len(raw) >= _CHUNK_BYTES
                    if not whole and not ended:
                        return  # the rest is about to be written
                    start += len(raw)
                    self.position.files[name] = start
                    most -= 1
                    yield _line(source, raw)
        except FileNotFoundError:
            return


def _event_line(entry: EventLogEntry, task: RunTask | None) -> LogLine | None:
    event, step = entry.dagster_event, entry.step_key or ""
    text = entry.user_message or (event.message if event is not None else "") or ""
    if not text or (task is not None and step and not task.owns(step)):
        return None
    return LogLine(
        source=RUN_SOURCE,
        at=datetime.fromtimestamp(entry.timestamp, UTC),
        level=logging.getLevelName(entry.level),
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
