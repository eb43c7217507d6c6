"""What Prometheus reads: requests, tasks by state, queues."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
        began, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            # The route's pattern, never the path: paths are without number.
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(method, route, status, time.perf_counter() - began)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
