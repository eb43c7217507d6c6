"""Keeps a vLLM engine fed: requests go in as others finish, never in batches.

An engine that breaks down takes all its requests along. It is started again and gets them back in
halves, until those that break it are found; what had its answer by then keeps it.

Calls are answered by the same steps (`calls`). One that is in an engine which breaks down is no
row's fault, and no row is condemned for a breakdown beside a call.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from mloc_dagster.errors import TaskCancelled, TransientError
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.turn import LOOK_EVERY_S
from mloc_dagster.executors.engines.vllm.calls import Call, Running, Seats, Traffic
from mloc_dagster.executors.engines.vllm.parsers import RequestParsing
from mloc_dagster.executors.engines.vllm.process import (
    BrokenDown,
    cause_of,
    is_dead,
    noticing_breakdowns,
    one_line,
)
from mloc_dagster.results import ServerFault
from mloc_dagster.settings import settings

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

    def add(self, request_id: str, request: EngineRequest) -> RequestParsing | None:
        """Hands a request to vLLM; whatever it raises is this request's error.

        Returns:
            What reads its answers; None where they are text only.
        """
        ...

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        """Returns a finished output as a completion; `ValueError` if there is none in it."""
        ...

    def restart(self) -> None:
        """Replaces the engine by a new one."""
        ...


class Feed:
    """One stream of requests through an engine, and the calls that come meanwhile.

    Args:
        engine: The engine; nobody else may feed it meanwhile.
        replies: Takes what becomes of the stream's requests.
        traffic: What the engine has, and the calls that wait for it.
        give_way: Called between steps; it may let others use their engines.
    """

    def __init__(
        self,
        engine: Feedable,
        replies: Replies,
        traffic: Traffic | None = None,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._replies = replies
        self._traffic = Traffic() if traffic is None else traffic
        self._give_way = give_way
        # A few more than run at once, so that no step waits for its next request.
        queue = max(8, engine.capacity // 8)
        self._seats = Seats(engine.capacity, queue, settings().interactive_share)
        self._looked = 0.0
        self._answered = self._culprits = self._restarts = 0
        self._condemned: list[tuple[EngineRequest, str]] = []
        self._why = ""
        self._beside_calls = False

    def run(self, requests: Iterator[EngineRequest | None]) -> None:
        """Answers all requests.

        Raises:
            TaskCancelled: If `cancelled` says so; the engine has none of the requests then.
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

    def serve(self, going: Callable[[], bool]) -> None:
        """Answers calls alone, for as long as `going` says so between two steps."""
        nothing = RequestSource(())
        nothing.draw()
        while going():
            self._pump(nothing, going)

    def _pump(
        self, source: RequestSource, going: Callable[[], bool] | None = None
    ) -> list[EngineRequest]:
        """Feeds until all are answered; returns the rows in an engine that broke down."""
        self._why = ""
        traffic = self._traffic
        while going() if going else not source.drained or traffic.rows:
            try:
                self._admit(source)
                self._top_up(source)
                if not traffic.running:
                    self._give_way()
                    self._look(time.perf_counter())  # more may come at any time, or never
                    continue
                before = time.perf_counter()
                with noticing_breakdowns():
                    outputs = self._engine.llm.step()
            except BrokenDown as broken:
                self._why = str(broken)
                break  # the handler's traceback would hold on to the old engine's memory
            now = time.perf_counter()
            traffic.busy_s += (now - before) / len(traffic.running)
            for output in outputs:
                self._hear(output, now)
            self._give_way()
            self._look(now)
        return self._recover() if self._why else []

    def _admit(self, source: RequestSource) -> None:
        """Lets calls in, and rows out that have the places of these."""
        traffic, seats = self._traffic, self._seats
        self._withdraw(traffic.gone())
        # A row that is alone in the engine is so to show whether it breaks it.
        if not traffic.waiting or source.single:
            return
        more = not source.drained
        room = seats.for_calls(traffic.rows, more=more) - traffic.calls
        coming = max(0, min(room, len(traffic.waiting)))
        rows = seats.for_rows(traffic.calls + coming, waiting=True, now=time.perf_counter())
        self._put_out(traffic.rows - rows, source)
        for _ in range(coming):
            call, request = traffic.waiting.popleft()
            if call.gone:
                call.dropped(request)
            else:
                self._add(request, call=call)
                seats.taken(by_call=True)

    def _top_up(self, source: RequestSource) -> None:
        """Draws requests while there is room."""
        traffic, seats = self._traffic, self._seats
        now = time.perf_counter()
        rows = seats.for_rows(traffic.calls, waiting=bool(traffic.waiting), now=now)
        if source.single:
            rows = 2  # it comes in whatever calls there are, and shows to be the last one
        while traffic.rows < rows:
            request = source.draw()
            if request is None:
                return
            self._add(request, source)
            seats.taken(by_call=False)
            self._look(time.perf_counter())  # a request may have waited for its pictures

    def _add(
        self, request: EngineRequest, source: RequestSource | None = None, call: Call | None = None
    ) -> None:
        traffic = self._traffic
        request_id = traffic.new_id()
        running = Running(request, traffic.busy_s, time.perf_counter(), call)
        try:
            running.parsing = self._engine.add(request_id, request)
        except Exception as error:
            if is_dead(error):  # it never reached the engine, which was dead before
                if call is not None:
                    traffic.waiting.appendleft((call, request))
                elif source is not None:
                    source.put_back(request)
                raise BrokenDown(cause_of(error)) from error
            self._fail(running, one_line(error))
            with noticing_breakdowns():
                self._engine.llm.abort_request([request_id])  # some of its answers may be in
        else:
            traffic.enter(request_id, running)

    def _hear(self, output: Any, now: float) -> None:
        running = self._traffic.running.get(output.request_id)
        if running is None:
            return
        running.hear(output)
        if output.finished:
            self._traffic.pop(output.request_id)
            self._finish(running, output, now)

    def _finish(self, running: Running, output: Any, now: float) -> None:
        try:
            completion = self._engine.completion(
                running.request,
                output,
                engine_s=self._traffic.busy_s - running.busy_s,
                latency_s=now - running.started,
            )
            if running.parsing is not None:
                completion = running.parsing.parsed(completion, output.outputs)
        except ValueError as error:
            self._fail(running, one_line(error))
            return
        self._answered += 1
        self._report_condemned()  # an engine that answers was not what broke
        receiver = self._replies if running.call is None else running.call
        receiver.done(running.request, completion)

    def _fail(self, running: Running, reason: str) -> None:
        receiver = self._replies if running.call is None else running.call
        receiver.failed(running.request, reason)

    def _withdraw(self, gone: list[str]) -> None:
        """Takes out of the engine what nobody waits for."""
        if not gone:
            return
        with noticing_breakdowns():
            self._engine.llm.abort_request(gone)
        for each in gone:
            running = self._traffic.pop(each)
            if running is not None and running.call is not None:
                running.call.dropped(running.request)

    def _put_out(self, count: int, source: RequestSource) -> None:
        """Takes the rows that came last out of the engine; they are computed anew later."""
        rows = self._traffic.youngest_rows(count)
        if not rows:
            return
        with noticing_breakdowns():
            self._engine.llm.abort_request(rows)
        for each in rows:
            running = self._traffic.pop(each)
            if running is not None:
                source.put_back(running.request)

    def _look(self, now: float) -> None:
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            if self._replies.cancelled():
                raise TaskCancelled("stopped between two steps of the engine")

    def _recover(self) -> list[EngineRequest]:
        """Starts the engine again; returns the rows that were in it."""
        calls = self._traffic.calls
        suspects = self._traffic.break_down(self._why)
        self._beside_calls = calls > 0
        self._restarts += not calls  # each call breaks an engine twice at most
        if self._restarts > MAX_RESTARTS:
            raise TransientError(f"the engine broke down {self._restarts} times, last: {self._why}")
        beside = f" and {calls} requests that somebody waits for" if calls else ""
        self._replies.log(
            f"the engine broke down with {len(suspects)} rows{beside} in it ({self._why}): "
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
            if left and group.drained and group.drawn == 1 and not self._beside_calls:
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
        """Takes the stream's requests out of the engine, which others will use after this."""
        abandoned = self._traffic.all_rows()
        for each in abandoned:
            self._traffic.pop(each)
        if abandoned:
            try:
                self._engine.llm.abort_request(abandoned)
            except Exception as error:  # noqa: BLE001  what we are told of already matters more
                self._replies.log(f"the engine could not be emptied: {one_line(error)}")


class RequestSource:
    """Requests that are still to be drawn.

    Args:
        requests: Drawn one by one, as the engine has room.
        single: Whether there is one only, which is to be alone in the engine.

    Attributes:
        drained: Whether there are no more.
        drawn: How many were drawn and not put back.
    """

    def __init__(self, requests: Iterable[EngineRequest | None], *, single: bool = False) -> None:
        self._requests = iter(requests)
        self._returned: list[EngineRequest] = []
        self.single = single
        self.drained = False
        self.drawn = 0

    def draw(self) -> EngineRequest | None:
        """Returns the next request; None when there are no more, or none for now."""
        if self._returned:
            request = self._returned.pop()
        else:
            try:
                request = None if self.drained else next(self._requests)
            except StopIteration:
                request, self.drained = None, True
        self.drawn += request is not None
        return request

    def put_back(self, request: EngineRequest) -> None:
        """Takes a request back that was drawn: it is the next one again."""
        self._returned.append(request)
        self.drained = False  # asked once more, an iterator that has ended says so again
        self.drawn -= 1


def halves(requests: list[EngineRequest]) -> list[RequestSource]:
    """Returns the requests in two sources of about equal length; empty ones are left out."""
    middle = (len(requests) + 1) // 2
    return [
        RequestSource(half, single=len(half) == 1)
        for half in (requests[:middle], requests[middle:])
        if half
    ]
