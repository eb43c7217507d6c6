"""Who asked for what, with which result: a line a request, on the process's output.

`mloc up` keeps it as `logs/api.log` and rotates it. A line names the token, the task and the path;
it has neither a token, nor a query, nor anything of a body.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

CALLER = "mloc.caller"
"""Key of a scope: the name of the token that opened the API."""

TASKS = "mloc.tasks"
"""Key of a scope: the ids of the tasks that a request made or changed, where its path has none."""

_PROBES = frozenset({"/healthz", "/healthz/ready", "/metrics"})
_WAITING_LINES = 10_000
_SHOWN_PATH = 500


class AccessLog:
    """Logs requests when they have been answered, but no probe that found all well.

    Args:
        app: What is behind.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        if scope["type"] != "http" or not _log.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            if status >= 400 or scope["path"] not in _PROBES:
                _log.info("%s", _line(scope, status, time.perf_counter() - began))


def _line(scope: Scope, status: int, took_s: float) -> str:
    client = scope.get("client") or ("-", 0)
    path = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    # What the client chose must not look like another line.
    shown = ascii(path.decode("latin-1")[:_SHOWN_PATH])[1:-1].replace(" ", "\\x20")
    tasks = _tasks(scope)
    return (
        f"{datetime.now(UTC).isoformat(timespec='milliseconds')} {client[0]} "
        f"token={scope.get(CALLER, '-')} {scope['method']} {shown} {status} {took_s:.3f}s "
        f"task={tasks}"
    )


def _tasks(scope: Scope) -> str:
    """Returns the task of a request; of several the first, and how many more."""
    parameters = scope.get("path_params") or {}
    named = parameters.get("task_id") or parameters.get("workflow_id")
    ids: Sequence[str] = scope.get(TASKS, ()) or ([named] if named else ())
    if not ids:
        return "-"
    more = f"+{len(ids) - 1}" if len(ids) > 1 else ""
    return ascii(ids[0][:200])[1:-1].replace(" ", "\\x20") + more


class _Dropping(QueueHandler):
    """Loses lines when nobody takes them: a log that stands still must not stop the API."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except Full:
            return


@contextmanager
def access_log_on_stdout() -> Generator[None]:
    """Writes the lines to the process's output, in a thread of its own."""
    waiting: Queue[logging.LogRecord] = Queue(_WAITING_LINES)
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(logging.Formatter("%(message)s"))
    listener, handler = QueueListener(waiting, output), _Dropping(waiting)
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    listener.start()
    try:
        yield
    finally:
        listener.stop()
        _log.removeHandler(handler)
