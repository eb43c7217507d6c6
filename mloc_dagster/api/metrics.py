"""Prometheus metrics and the access log.

`mloc up` keeps it as `logs/api.log` and rotates it. A line names the token, the task and the path;
it has neither a token, nor a query, nor anything of a body.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mloc_dagster.wire import TaskState

_log = logging.getLogger(__name__)

CALLER = "mloc.caller"
"""Key of a scope: the name of the token that opened the API."""

TASKS = "mloc.tasks"
"""Key of a scope: the ids of the tasks that a request made or changed, where its path has none."""

_PROBES = frozenset({"/healthz", "/healthz/ready", "/metrics"})
_WAITING_LINES = 10_000
_WRITE_EVERY_S = 0.2
_LAST_WRITE_S = 5.0
_SHOWN_PATH = 500


class _Answer:
    """Sends on what answers a request, and keeps the status; 500 as long as there is none."""

    def __init__(self, send: Send) -> None:
        self.status = 500
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


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
        began, answer = time.perf_counter(), _Answer(send)
        try:
            await self._app(scope, receive, answer)
        finally:
            if answer.status >= 400 or scope["path"] not in _PROBES:
                _log.info("%s", _line(scope, answer.status, time.perf_counter() - began))


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


class _Lines(logging.Handler):
    """Collects lines and writes them in a thread of its own, many at once.

    A thread that wakes for each line costs a busy API a fifth of its time. Lines are lost when
    nobody takes them: a log that stands still must not stop the API.
    """

    def __init__(self, stream: IO[str]) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: list[str] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_forever, name="access-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line until it is written."""
        if len(self._waiting) < _WAITING_LINES:
            self._waiting.append(record.getMessage())

    def close(self) -> None:
        """Writes what waits."""
        self._ended.set()
        self._thread.join(_LAST_WRITE_S)
        super().close()

    def _write_forever(self) -> None:
        while not self._ended.wait(_WRITE_EVERY_S):
            self._write()
        self._write()

    def _write(self) -> None:
        self.acquire()
        lines, self._waiting = self._waiting, []
        self.release()
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


@contextmanager
def access_log_on_stdout() -> Generator[None]:
    """Writes the lines to the process's output, a fifth of a second later at most."""
    handler = _Lines(sys.stdout)
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    try:
        yield
    finally:
        _log.removeHandler(handler)
        handler.close()


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 2.5, 5, 10, 60)
_TASKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The figures of one API; each has a registry of its own.

    Attributes:
        accepted: Tasks that were accepted.
        commit_tasks: Submissions that one commit made durable.
        streams: Live logs that are served now.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route")
        self._requests = Counter(
            "mloc_api_requests",
            "Requests by route and status.",
            (*labels, "status"),
            registry=self._registry,
        )
        self._latency = Histogram(
            "mloc_api_request_seconds",
            "Seconds from a request's headers to the end of its answer.",
            labels,
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.accepted = Counter(
            "mloc_api_accepted_tasks", "Tasks accepted.", registry=self._registry
        )
        self.commit_tasks = Histogram(
            "mloc_api_commit_submissions",
            "Submissions that one commit made durable.",
            buckets=_TASKS,
            registry=self._registry,
        )
        self.streams = Gauge(
            "mloc_api_live_logs", "Live logs that are served now.", registry=self._registry
        )
        self._tasks = Gauge("mloc_tasks", "Tasks by state.", ("state",), registry=self._registry)
        self._queued = Gauge(
            "mloc_queue_depth",
            "Tickets that wait for a worker, by queue.",
            ("queue",),
            registry=self._registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(seconds)

    def render(self, tasks: Mapping[TaskState, int], queues: Mapping[str, int]) -> bytes:
        """Returns all figures as text."""
        for state in TaskState:
            self._tasks.labels(state.value).set(tasks.get(state, 0))
        self._queued.clear()
        for queue, depth in queues.items():
            self._queued.labels(queue).set(depth)
        return generate_latest(self._registry)


CONTENT_TYPE = CONTENT_TYPE_LATEST


class Observed:
    """Counts requests and how long they take.

    Args:
        app: What is behind.
        metrics: Where to count.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answer = time.perf_counter(), _Answer(send)
        try:
            await self._app(scope, receive, answer)
        finally:
            # The route's pattern, never the path: paths are without number.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(method, route, answer.status, time.perf_counter() - began)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
