"""What is in a vLLM engine, and what waits to be put there beside the rows of a shard.

A call's thread hands in requests and waits. Whichever thread has the engine's turn takes its
steps, for all that is in the engine; each call hears what concerns it in its own thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.engines.pieces import Pieces
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Replies
from mloc_dagster.executors.engines.vllm.parsers import RequestParsing, Say
from mloc_dagster.results import ServerFault, ToolCallDelta

KEPT_S = 5.0
"""Rows stay out of the places of calls for that long: each that is put out begins anew."""


class Call:
    """Requests for whose answers a thread waits.

    Args:
        requests: The requests.
        replies: Used by the waiting thread only.
        wake: Tells that thread that there is something for it.

    Attributes:
        gone: Nobody waits any more: the requests are to leave the engine.
        error: Why that is so.
    """

    def __init__(
        self, requests: Sequence[EngineRequest], replies: Replies, wake: Callable[[], None]
    ) -> None:
        self._open = {request.row.index: request for request in requests}
        self._replies = replies
        self._wake = wake
        self._news: deque[Callable[[], None]] = deque()
        self._retried: set[int] = set()
        self._heard: set[int] = set()
        self.gone = False
        self.error: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether all that there will be to say was said."""
        return not self._open

    def listen(self) -> None:
        """Makes the replies that have come, in the waiting thread; notes if it waits no longer."""
        ended = self.ended
        try:
            while self._news and not self.gone:
                self._news.popleft()()
            hung_up = not ended and not self.gone and self._replies.cancelled()
        except Exception as error:  # noqa: BLE001  the engine's steps go on for all others
            self.gone, self.error = True, error
        else:
            if hung_up:
                self.gone = True
                self.error = TaskCancelled("nobody waits for the answer any more")

    def done(self, request: EngineRequest, completion: Completion) -> None:
        """Notes a request's answer."""
        self._settle(request, partial(self._replies.done, request, completion))

    def failed(self, request: EngineRequest, reason: str) -> None:
        """Notes that a request has no answer."""
        self._settle(request, partial(self._replies.failed, request, reason))

    def text(self, request: EngineRequest, answer: int, piece: str) -> None:
        """Notes a piece of an answer's text."""
        self._note(request, partial(self._replies.text, request, answer, piece))

    def reasoning(self, request: EngineRequest, answer: int, piece: str) -> None:
        """Notes a piece of an answer's thoughts."""
        self._note(request, partial(self._replies.reasoning, request, answer, piece))

    def tool_call(self, request: EngineRequest, answer: int, piece: ToolCallDelta) -> None:
        """Notes a piece of an answer's calls."""
        self._note(request, partial(self._replies.tool_call, request, answer, piece))

    def say(self, request: EngineRequest) -> Say:
        """Returns what takes the pieces of a request's answers."""
        return Say(
            partial(self.text, request),
            partial(self.reasoning, request),
            partial(self.tool_call, request),
        )

    def dropped(self, request: EngineRequest) -> None:
        """Notes that a request, for which nobody waits, has left."""
        self._settle(request, lambda: None)

    def give_up(self, reason: str) -> None:
        """Fails all that is still open."""
        for request in list(self._open.values()):
            self.failed(request, ServerFault(reason))

    def may_retry(self, request: EngineRequest) -> bool:
        """Tells whether to try a request again that was in an engine when that broke down.

        Once, for it may be what breaks the engine; and not if some of its text is out.
        """
        index = request.row.index
        again = index not in self._retried and index not in self._heard
        self._retried.add(index)
        return again

    def _settle(self, request: EngineRequest, reply: Callable[[], None]) -> None:
        if request.row.index in self._open:
            self._news.append(reply)  # before it counts as ended
            del self._open[request.row.index]
            self._wake()

    def _note(self, request: EngineRequest, reply: Callable[[], None]) -> None:
        self._heard.add(request.row.index)
        self._news.append(reply)
        self._wake()


@dataclass(slots=True)
class Running:
    """A request in the engine.

    Attributes:
        request: The request.
        busy_s: `Traffic.busy_s` when it came.
        started: When that was.
        call: Whose it is; None for a row of a shard.
        outputs: The newest of each of its answers, where it is streamed.
        pieces: What was said of each of these.
        parsing: What reads its answers; None where they are text only.
    """

    request: EngineRequest
    busy_s: float
    started: float
    call: Call | None = None
    outputs: dict[int, Any] = field(default_factory=dict)
    pieces: dict[int, Pieces] = field(default_factory=dict)
    parsing: RequestParsing | None = None

    def hear(self, output: Any) -> None:
        """Says what is new in a streamed output, and completes a finished one by what was before.

        vLLM gives each of several answers out alone.
        """
        call = self.call
        if call is None or not self.request.stream:
            return
        for each in output.outputs:
            self.outputs[each.index] = each
            if self.parsing is not None:
                self.parsing.hear(each, call.say(self.request))
                continue
            pieces = self.pieces.get(each.index)
            if pieces is None:
                pieces = Pieces(partial(call.text, self.request, each.index))
                self.pieces[each.index] = pieces
            if each.finish_reason is None:
                pieces.grow(each.text)
            else:
                pieces.end(each.text)
        output.outputs = [self.outputs[number] for number in sorted(self.outputs)]


class Traffic:
    """What is in an engine; belongs to whoever has its turn, but for `put`.

    Attributes:
        running: What the engine has, by the id that vLLM knows it by, oldest first.
        waiting: Requests of calls that it has not.
        busy_s: Grows in each step by its duration over the requests in it: between a request's
            start and its end it has grown by that request's share.
    """

    def __init__(self) -> None:
        self.running: dict[str, Running] = {}
        self.waiting: deque[tuple[Call, EngineRequest]] = deque()
        self.busy_s = 0.0
        self._calls: set[str] = set()
        self._number = 0

    def put(self, call: Call, requests: Sequence[EngineRequest]) -> None:
        """Hands in a call's requests; from any thread."""
        self.waiting.extend((call, request) for request in requests)

    def new_id(self) -> str:
        """Returns an id that no request has had."""
        self._number += 1
        return str(self._number - 1)

    @property
    def calls(self) -> int:
        """How many requests of calls the engine has."""
        return len(self._calls)

    @property
    def rows(self) -> int:
        """How many rows of a shard the engine has."""
        return len(self.running) - len(self._calls)

    def enter(self, request_id: str, running: Running) -> None:
        """Notes a request that the engine has taken."""
        self.running[request_id] = running
        if running.call is not None:
            self._calls.add(request_id)

    def pop(self, request_id: str) -> Running | None:
        """Notes that a request has left the engine; returns it."""
        self._calls.discard(request_id)
        return self.running.pop(request_id, None)

    def gone(self) -> list[str]:
        """Returns the requests that nobody waits for any more."""
        running = self.running
        return [each for each in self._calls if (call := running[each].call) and call.gone]

    def youngest_rows(self, count: int) -> list[str]:
        """Returns the ids of so many rows, those that came last first."""
        if count <= 0:
            return []
        return [each for each in reversed(self.running) if each not in self._calls][:count]

    def all_rows(self) -> list[str]:
        """Returns the ids of the rows."""
        return [each for each in self.running if each not in self._calls]

    def break_down(self, why: str) -> list[EngineRequest]:
        """Empties a broken engine: calls wait again, or fail; returns the rows."""
        running = list(self.running.values())
        self.running.clear()
        self._calls.clear()
        for each in reversed(running):
            call, request = each.call, each.request
            if call is None:
                continue
            if not call.gone and call.may_retry(request):
                self.waiting.appendleft((call, request))
            else:
                call.failed(
                    request, ServerFault(f"the engine broke down while it answered this ({why})")
                )
        return [each.request for each in running if each.call is None]


class Seats:
    """How many of the requests that an engine computes at once may be calls, and how many rows.

    While rows wait, calls have at most their share, at least one place. A row that makes room for
    a call begins anew later; so that this is rare, the places stay free for a while.

    Args:
        capacity: Requests that the engine computes at once.
        queue: Rows that it may have besides.
        share: `MLOC_INTERACTIVE_SHARE`.
    """

    def __init__(self, capacity: int, queue: int, share: float) -> None:
        self._capacity = capacity
        self._queue = queue
        self._for_calls = capacity if share >= 1 else max(1, int(share * capacity))
        # With a single place calls and rows take turns.
        self._turns = capacity == 1 and share < 1
        self._row_next = False
        self._kept = 0
        self._until = 0.0

    def for_calls(self, rows: int, *, more: bool) -> int:
        """Returns how many requests of calls the engine may have.

        Args:
            rows: How many rows it has.
            more: Whether more rows wait.
        """
        if not rows and not more:
            return self._capacity
        if self._turns:
            return 0 if rows or self._row_next else 1
        return self._for_calls if more else max(self._for_calls, self._capacity - rows)

    def for_rows(self, calls: int, *, waiting: bool, now: float) -> int:
        """Returns how many rows the engine may have.

        Args:
            calls: How many requests of calls it has, or is about to have.
            waiting: Whether there are more of these.
            now: Seconds of a clock that goes on.
        """
        if self._turns:
            return 0 if calls else 1 if waiting else self._capacity + self._queue
        if calls >= self._kept or now >= self._until:
            self._kept, self._until = calls, now + KEPT_S
        if not self._kept:
            return self._capacity + self._queue
        return max(0, self._capacity - self._kept)

    def taken(self, *, by_call: bool) -> None:
        """Notes who took the last free place."""
        self._row_next = by_call
