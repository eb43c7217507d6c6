"""Logs: a page at a time, or live as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from mloc_dagster.api.logs import Position, TaskLogs
from mloc_dagster.api.openapi import problems
from mloc_dagster.api.parameters import Cursor, TaskId
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.wire import LogEnd, LogLevel, LogLine, LogPage, TaskState

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
