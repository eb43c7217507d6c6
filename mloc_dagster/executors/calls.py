"""Interactive requests: a few rows whose answers somebody waits for.

They are rendered, tokenised and answered as a shard's rows are. The engine answers them between
two steps of a shard (`CallableEngine`), or between two shards where it knows nothing of calls.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from weakref import WeakKeyDictionary

from mloc_dagster.executors.base import Caller, no_files
from mloc_dagster.executors.engines.protocol import (
    CallableEngine,
    Completion,
    Engine,
    EngineRequest,
    Replies,
)
from mloc_dagster.executors.engines.turn import Ticket, Turn
from mloc_dagster.executors.image_stream import with_pictures
from mloc_dagster.executors.prompts import RowOptions
from mloc_dagster.executors.row_requests import (
    WINDOW_ROWS,
    answered_row,
    failed_request,
    keeps_call,
    kept_calls,
    rendered_rows,
    whole_calls,
)
from mloc_dagster.results import InputRow, OutputRow, ToolCallDelta, failed_row
from mloc_dagster.schema import Inference, ModelSpec, certain_engine

_turns: WeakKeyDictionary[Engine, Turn] = WeakKeyDictionary()


@contextmanager
def between_calls(
    engine: Engine, cancelled: Callable[[], bool], *, urgent: bool = False
) -> Generator[None]:
    """Keeps apart, in the `with` block, what an engine that takes no calls is asked to run.

    Raises:
        TaskCancelled: If `cancelled` says so while something else runs.
    """
    if isinstance(engine, CallableEngine):
        yield
        return
    with _turns.setdefault(engine, Turn()).held(Ticket(urgent), cancelled):
        yield


def answer_call(
    rows: Sequence[InputRow], spec: ModelSpec, engine: Engine, caller: Caller
) -> list[OutputRow]:
    """Answers the rows of one request; see `AnswersCalls`.

    Without a seed in the template or in a row, each call draws anew.

    Raises:
        TaskCancelled: If the caller hung up.
        TransientError: If the engine is lost.
        ValueError: If two rows have the same index.
    """
    if len({row.index for row in rows}) < len(rows):
        raise ValueError("the rows of a call need indexes of their own")
    options = RowOptions(spec.row_block, certain_engine(spec))
    desk = _Desk(engine, caller, _first_numbers(rows, options))
    rendered = rendered_rows(rows, options, secrets.randbits(32), engine, desk.refuse)
    pictured = with_pictures(
        chain.from_iterable(rendered), WINDOW_ROWS, no_files, desk.failed, desk.gone
    )
    with closing(pictured):
        requests = [
            replace(request, urgent=True, stream=caller.stream and request.sampling is not None)
            for request in chain.from_iterable(pictured)
        ]
    replies = Replies(
        desk.done,
        desk.failed,
        desk.gone,
        lambda _: None,
        text=desk.text,
        reasoning=desk.reasoning,
        tool_call=desk.tool_call,
    )
    try:
        if isinstance(engine, CallableEngine):
            engine.call(requests, replies)
        else:
            with between_calls(engine, desk.gone, urgent=True):
                engine.run(iter(requests), replies)
    except Exception as error:
        if desk.problem is None:
            raise
        raise desk.problem from error
    if desk.problem is not None:
        raise desk.problem
    return [desk.rows[row.index] for row in rows]


def _first_numbers(rows: Sequence[InputRow], options: RowOptions) -> dict[int, int]:
    """Returns the number of each row's first choice, by the row's index."""

    def choices(row: InputRow) -> int:
        try:
            block = options.of(row)
        except ValueError:
            return 1
        return block.n if isinstance(block, Inference) else 1

    before = accumulate((choices(row) for row in rows), initial=0)
    return {row.index: number for row, number in zip(rows, before, strict=False)}


@dataclass(slots=True)
class _Desk:
    """Turns what becomes of a call's requests into rows, and its pieces into numbered ones.

    An error of the caller's own ends the call, not the engine's step.
    """

    engine: Engine
    caller: Caller
    numbers: dict[int, int]
    rows: dict[int, OutputRow] = field(default_factory=dict)
    said: set[int] = field(default_factory=set)
    problem: Exception | None = None

    def done(self, request: EngineRequest, completion: Completion) -> None:
        row = self.rows[request.row.index] = answered_row(request, completion, self.engine)
        if request.stream and row.index not in self.said:  # an engine that does not stream
            for number, each in enumerate(completion.answers, self.numbers[row.index]):
                self._say(self.caller.reasoning, number, each.reasoning)
                self._say(self.caller.text, number, each.text)
                for piece in whole_calls(kept_calls(each, request.sampling)):
                    self._say(self.caller.tool_call, number, piece)

    def failed(self, request: EngineRequest, reason: str) -> None:
        self.rows[request.row.index] = failed_request(request, reason, self.engine)

    def refuse(self, row: InputRow, reason: str) -> None:
        self.rows[row.index] = failed_row(row, reason, self.engine.label)

    def text(self, request: EngineRequest, answer: int, piece: str) -> None:
        self._pass_on(self.caller.text, request, answer, piece)

    def reasoning(self, request: EngineRequest, answer: int, piece: str) -> None:
        self._pass_on(self.caller.reasoning, request, answer, piece)

    def tool_call(self, request: EngineRequest, answer: int, piece: ToolCallDelta) -> None:
        if keeps_call(request.sampling, piece.index):
            self._pass_on(self.caller.tool_call, request, answer, piece)

    def gone(self) -> bool:
        if self.problem is not None:
            return True
        try:
            return self.caller.cancelled()
        except Exception as error:  # noqa: BLE001  raised again when the engine is left
            self.problem = error
            return True

    def _pass_on[PieceT](
        self, say: Callable[[int, PieceT], None], request: EngineRequest, answer: int, piece: PieceT
    ) -> None:
        self.said.add(request.row.index)
        sampling = request.sampling
        if sampling is not None:  # greedy, several answers are one
            for number in range(answer, sampling.n, sampling.draws):
                self._say(say, self.numbers[request.row.index] + number, piece)

    def _say[PieceT](
        self, say: Callable[[int, PieceT], None], number: int, piece: PieceT | None
    ) -> None:
        if piece and self.problem is None:
            try:
                say(number, piece)
            except Exception as error:  # noqa: BLE001  raised again when the engine is left
                self.problem = error
