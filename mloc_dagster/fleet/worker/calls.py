"""A worker's interactive calls: each has a thread, and one more sends what has become of all."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, reduce
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from msgspec.structs import replace

from mloc_dagster.compile import CompiledTask, compile_text
from mloc_dagster.errors import FleetUnavailableError, MlocError, TaskCancelled, TransientError
from mloc_dagster.executors import AnswersCalls, Caller, ModelCache, task_executor
from mloc_dagster.fleet.calls import (
    SIGN_OF_LIFE_S,
    AnswerPiece,
    Call,
    Calls,
    FailurePiece,
    Piece,
    ReasoningPiece,
    RowsPiece,
    SignOfLife,
    TextPiece,
    ToolCallPiece,
)
from mloc_dagster.net import Reach

_log = logging.getLogger(__name__)

_MOST_AT_ONCE = 64
"""Of one worker; others wait in it, and their callers are told that they do."""

_KEPT_TEMPLATES = 64
_LOOK_S = 5.0
_PAUSE_S = 1.0


def answer_call(
    call: Call,
    cache: ModelCache,
    give: Callable[[AnswerPiece], None],
    cancelled: Callable[[], bool],
    reach: Reach,
) -> RowsPiece | FailurePiece:
    """Answers a call with a model of this process, loaded if need be.

    Args:
        call: What is asked.
        cache: Lends the model.
        give: Takes the answer as it is generated, if the call wants that.
        cancelled: Whether the caller has gone.
        reach: What the call may read and contact.

    Returns:
        How it ended; a row that cannot be answered has its error.
    """
    try:
        with reach.applied():
            return _rows(call, cache, give, cancelled)
    except TaskCancelled:
        return FailurePiece("the caller has gone")
    except MlocError as error:
        return FailurePiece(str(error), retry=isinstance(error, TransientError))
    except Exception as error:  # noqa: BLE001 (whoever waits is told)
        _log.exception("a call of %s failed", call.call_id)
        return FailurePiece(f"{type(error).__name__}: {error}", retry=True)


def _rows(
    call: Call,
    cache: ModelCache,
    give: Callable[[AnswerPiece], None],
    cancelled: Callable[[], bool],
) -> RowsPiece | FailurePiece:
    spec = task_of(call.document).task.spec
    executor = task_executor(spec.task_type)
    if not isinstance(executor, AnswersCalls):
        return FailurePiece(f"tasks of the type {spec.task_type} answer no calls")
    lent: Any = executor
    with cache.lease(lent, spec) as model:
        caller = Caller(
            lambda choice, text: give(TextPiece(choice, text)),
            cancelled,
            stream=call.stream,
            reasoning=lambda choice, text: give(ReasoningPiece(choice, text)),
            tool_call=lambda choice, delta: give(ToolCallPiece(choice, delta)),
        )
        return RowsPiece(list(executor.answer(call.rows, spec, model, caller)))


@lru_cache(_KEPT_TEMPLATES)
def task_of(document: str) -> CompiledTask:
    """Returns the one task of a call's document, compiled.

    Raises:
        TransientError: If it cannot be read here, as when its sender runs another version.
    """
    templates, findings = compile_text(document, "call")
    if not templates:
        raise TransientError(f"this worker cannot read the call: {findings[0].message}")
    return templates[0].tasks[0]


class _Line:
    """What a call has to say to its caller."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.ended = False
        self._pieces: list[Piece] = []
        self._lock = threading.Lock()
        self._silent_since = 0.0

    def give(self, piece: Piece) -> None:
        """Adds a piece."""
        with self._lock:
            self._pieces.append(piece)

    def end(self, piece: Piece) -> None:
        """Adds the last piece."""
        with self._lock:
            self._pieces.append(piece)
            self.ended = True

    def take(self) -> list[Piece]:
        """Returns what is to be sent now; text of one answer in one piece."""
        now = time.monotonic()
        with self._lock:
            taken, self._pieces = self._pieces, []
        if not taken and now - self._silent_since < SIGN_OF_LIFE_S:
            return []
        self._silent_since = now
        return _joined(taken) or [SignOfLife()]


def _joined(pieces: list[Piece]) -> list[Piece]:
    joined: list[Piece] = []
    for key, group in groupby(pieces, key=_part_of):
        if key is None:
            joined += group
        else:
            joined.append(reduce(_and, group))
    return joined


def _part_of(piece: Piece) -> tuple[object, ...] | None:
    """Returns of which part of an answer this is a piece."""
    match piece:
        case TextPiece() | ReasoningPiece():
            return type(piece), piece.choice
        case ToolCallPiece():
            return type(piece), piece.choice, piece.delta.index
        case _:
            return None


def _and(piece: Piece, after: Piece) -> Piece:
    match piece, after:
        case TextPiece() | ReasoningPiece(), TextPiece() | ReasoningPiece():
            return replace(piece, text=piece.text + after.text)
        case ToolCallPiece(delta=delta), ToolCallPiece(delta=more):
            grown = replace(delta, arguments=delta.arguments + more.arguments)
            return replace(piece, delta=grown)
        case _:
            raise TypeError(f"{piece} and {after} are no pieces of one part")


class CallServer:
    """Answers the calls of one worker process, from `with` to its end.

    Args:
        engine: Carries calls and answers.
        worker_id: Whose calls.
        cache: Lends models.
    """

    def __init__(self, engine: Calls, worker_id: str, cache: ModelCache) -> None:
        self._engine = engine
        self._worker_id = worker_id
        self._cache = cache
        self._lines: dict[str, _Line] = {}
        self._news = threading.Event()
        self._closing = threading.Event()
        self._finished = threading.Event()
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="mloc-call")
        self._listener = threading.Thread(target=self._listen, name="mloc-calls")
        self._sender = threading.Thread(target=self._send, name="mloc-answers")

    def __enter__(self) -> Self:
        self._listener.start()
        self._sender.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes no more calls, and ends when those that run are answered."""
        self._closing.set()
        self._engine.end_wait_for_calls(self._worker_id)
        self._listener.join()
        self._threads.shutdown(wait=True)
        self._finished.set()
        self._news.set()
        self._sender.join()

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                call = self._engine.next_call(self._worker_id, _LOOK_S)
            except FleetUnavailableError as error:
                _log.info("no calls are taken for a moment: %s", error)
                self._closing.wait(_PAUSE_S)
                continue
            if call is not None:
                self._lines[call.call_id] = line = _Line()
                self._news.set()
                self._threads.submit(self._answer, call, line)

    def _answer(self, call: Call, line: _Line) -> None:
        def give(piece: AnswerPiece) -> None:
            line.give(piece)
            self._news.set()

        reach = Reach("api")
        line.end(answer_call(call, self._cache, give, line.cancelled.is_set, reach))
        self._news.set()

    def _send(self) -> None:
        while self._lines or not self._finished.is_set():
            self._news.wait(SIGN_OF_LIFE_S / 2)
            self._news.clear()
            lines = dict(self._lines)
            ended = [call_id for call_id, line in lines.items() if line.ended]
            pieces = {call_id: taken for call_id, line in lines.items() if (taken := line.take())}
            try:
                gone = self._engine.give_pieces(pieces) if pieces else ()
            except FleetUnavailableError as error:
                _log.warning("%d callers are not answered: %s", len(pieces), error)
                gone = list(pieces)  # they have heard nothing for minutes
            for call_id in gone:
                lines[call_id].cancelled.set()
            for call_id in ended:
                del self._lines[call_id]
