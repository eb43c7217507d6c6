"""Keeps a vLLM engine fed: requests go in as others finish, never in batches.

An engine that breaks down takes all its requests along. It is started again and gets them back in
halves, until those that break it are found; what had its answer by then keeps it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.vllm.process import (
    BrokenDown,
    cause_of,
    is_dead,
    noticing_breakdowns,
    one_line,
)
from mloc_dagster.results import ServerFault

LOOK_EVERY_S = 0.1
"""How often somebody is asked whether the task was cancelled."""

MAX_RESTARTS = 64
"""Of one shard: about seven rows among 256 that each break the engine."""

MAX_CULPRITS_AT_FIRST = 3
"""So many rows in a row break an engine that never answered one: it is not the rows."""


class Feedable(Protocol):
    """An engine that can be fed.

    Attributes:
        llm: vLLM's `LLMEngine`; another one after `restart`.
        capacity: Requests that it computes at once at most.
    """

    llm: Any
    capacity: int

    def add(self, request_id: str, request: EngineRequest) -> None:
        """Hands a request to vLLM; whatever it raises is this request's error."""
        ...

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        """Returns a finished output as a completion; `ValueError` if there is none in it."""
        ...

    def restart(self) -> None:
        """Replaces the engine by a new one."""
        ...


@dataclass(slots=True)
class _Running:
    request: EngineRequest
    busy_s: float
    started: float


class Feed:
    """One stream of requests through an engine.

    Args:
        engine: The engine; nobody else may feed it meanwhile.
        replies: Takes what becomes of the requests.
    """

    def __init__(self, engine: Feedable, replies: Replies) -> None:
        self._engine = engine
        self._replies = replies
        self._running: dict[str, _Running] = {}
        # A few more than run at once, so that no step waits for its next request.
        self._limit = engine.capacity + max(8, engine.capacity // 8)
        # Grows in each step by its duration over the requests in it: between a request's start
        # and its end it has grown by that request's share.
        self._busy_s = 0.0
        self._number = 0
        self._looked = 0.0
        self._answered = self._culprits = self._restarts = 0
        self._condemned: list[tuple[EngineRequest, str]] = []
        self._why = ""

    def run(self, requests: Iterator[EngineRequest]) -> None:
        """Answers all requests.

        Raises:
            TaskCancelled: If `cancelled` says so; the engine is then empty and can go on.
            TransientError: If the engine breaks down again and again. Rows that were thought to
                break it have then no reply: they may well be innocent.
        """
        source = RequestSource(requests)
        try:
            while not source.drained:
                self._isolate(self._pump(source))
        except BaseException:
            self._abandon()
            raise
        self._report_condemned()

    def _pump(self, source: RequestSource) -> list[EngineRequest]:
        """Feeds until all are answered; returns what was in an engine that broke down."""
        self._why = ""
        while not source.drained or self._running:
            try:
                self._top_up(source)
                if not self._running:
                    continue
                before = time.perf_counter()
                with noticing_breakdowns():
                    outputs = self._engine.llm.step()
            except BrokenDown as broken:
                self._why = str(broken)
                break  # the handler's traceback would hold on to the old engine's memory
            now = time.perf_counter()
            self._busy_s += (now - before) / len(self._running)
            for output in outputs:
                if output.finished:
                    self._finish(output, now)
            self._look(now)
        return self._recover() if self._why else []

    def _top_up(self, source: RequestSource) -> None:
        """Draws requests while there is room."""
        while len(self._running) < self._limit:
            request = source.draw()
            if request is None:
                return
            self._add(request, source)
            self._look(time.perf_counter())  # a request may have waited for its pictures

    def _add(self, request: EngineRequest, source: RequestSource) -> None:
        request_id = str(self._number)
        self._number += 1
        running = _Running(request, self._busy_s, time.perf_counter())
        try:
            self._engine.add(request_id, request)
        except Exception as error:
            if is_dead(error):
                source.put_back(request)  # it never reached the engine, which was dead before
                raise BrokenDown(cause_of(error)) from error
            self._replies.failed(request, one_line(error))
            with noticing_breakdowns():
                self._engine.llm.abort_request([request_id])  # some of its answers may be in
        else:
            self._running[request_id] = running

    def _finish(self, output: Any, now: float) -> None:
        running = self._running.pop(output.request_id, None)
        if running is None:
            return
        try:
            completion = self._engine.completion(
                running.request,
                output,
                engine_s=self._busy_s - running.busy_s,
                latency_s=now - running.started,
            )
        except ValueError as error:
            self._replies.failed(running.request, one_line(error))
            return
        self._answered += 1
        self._report_condemned()  # an engine that answers was not what broke
        self._replies.done(running.request, completion)

    def _look(self, now: float) -> None:
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._replies.cancelled():
                raise TaskCancelled("stopped between two steps of the engine")

    def _recover(self) -> list[EngineRequest]:
        """Starts the engine again; returns what was in it."""
        suspects = [each.request for each in self._running.values()]
        self._running.clear()
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise TransientError(f"the engine broke down {self._restarts} times, last: {self._why}")
        self._replies.log(
            f"the engine broke down with {len(suspects)} rows in it ({self._why}): "
            "starting it again"
        )
        self._engine.restart()
        return suspects

    def _isolate(self, suspects: list[EngineRequest]) -> None:
        """Answers the suspects group by group, halving each group that breaks the engine.

        Only a row that was alone in its engine from the start is condemned: an engine may also
        die while it happens to have nothing but a last row left.
        """
        groups = deque(halves(suspects))
        while groups:
            group = groups[0]
            left = self._pump(group)
            if group.drained:
                groups.popleft()
            if left and group.drained and group.drawn == 1:
                self._condemn(left[0])
            else:
                groups.extendleft(reversed(halves(left)))

    def _condemn(self, request: EngineRequest) -> None:
        self._culprits += 1
        self._replies.log(f"row {request.row.index} breaks the engine by itself ({self._why})")
        self._condemned.append((request, f"this row breaks the engine ({self._why})"))
        if not self._answered and self._culprits >= MAX_CULPRITS_AT_FIRST:
            raise TransientError(f"the engine breaks down on every row, last: {self._why}")

    def _report_condemned(self) -> None:
        condemned, self._condemned = self._condemned, []
        for request, reason in condemned:
            self._replies.failed(request, ServerFault(reason))

    def _abandon(self) -> None:
        """Empties the engine, which others will use after this."""
        abandoned = list(self._running)
        self._running.clear()
        if abandoned:
            try:
                self._engine.llm.abort_request(abandoned)
            except Exception as error:  # noqa: BLE001  what we are told of already matters more
                self._replies.log(f"the engine could not be emptied: {one_line(error)}")


class RequestSource:
    """Requests that are still to be drawn.

    Args:
        requests: Drawn one by one, as the engine has room.

    Attributes:
        drained: Whether there are no more.
        drawn: How many were drawn and not put back.
    """

    def __init__(self, requests: Iterable[EngineRequest]) -> None:
        self._requests = iter(requests)
        self._returned: EngineRequest | None = None
        self.drained = False
        self.drawn = 0

    def draw(self) -> EngineRequest | None:
        """Returns the next request; None when there are no more."""
        request, self._returned = self._returned, None
        if request is None and not self.drained:
            request = next(self._requests, None)
        self.drained = request is None
        self.drawn += not self.drained
        return request

    def put_back(self, request: EngineRequest) -> None:
        """Takes back the request that was drawn last: it is the next one again."""
        self._returned = request
        self.drawn -= 1


def halves(requests: list[EngineRequest]) -> list[RequestSource]:
    """Returns the requests in two sources of about equal length; empty ones are left out."""
    middle = (len(requests) + 1) // 2
    return [RequestSource(half) for half in (requests[:middle], requests[middle:]) if half]
