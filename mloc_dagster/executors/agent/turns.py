"""Turns of many trajectories on one engine: asked for in an event loop, answered by its steps.

The engine runs in the shard's own thread and draws from here as it has room. It is told when there
is nothing for now: the trajectories wait for their tools, and will ask again.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count

from mloc_dagster.executors.engines.protocol import Completion, Engine, EngineRequest
from mloc_dagster.executors.engines.turn import LOOK_EVERY_S
from mloc_dagster.executors.row_requests import single_request
from mloc_dagster.results import InputRow, OutputRow
from mloc_dagster.schema import Inference


class UnansweredTurnError(Exception):
    """The engine has no answer to a turn; the row ends with the reason."""


@dataclass(eq=False, slots=True)
class Turn:
    """What a trajectory asks the model.

    Attributes:
        row: The chat so far, under the index of the trajectory's row.
        block: How to answer.
        seed: Seeds what is random in the answer.
        place: Trajectories that began earlier come first.
        answer: What it waits for.
    """

    row: InputRow
    block: Inference
    seed: int
    place: int
    answer: asyncio.Future[Completion] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class TurnQueue(Iterator[EngineRequest | None]):
    """What an engine draws from; takes turns from the event loop of `loop`.

    Args:
        engine: Renders the turns.
        loop: Where the trajectories run.
        emit: Takes finished rows, in the engine's thread.
    """

    def __init__(
        self, engine: Engine, loop: asyncio.AbstractEventLoop, emit: Callable[[OutputRow], None]
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._emit = emit
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Turn]] = []
        self._number = count()
        self._rows: deque[OutputRow] = deque()
        self._out: dict[int, Turn] = {}  # by the identity of their rows: of one row, several
        self._answered: deque[tuple[Turn, Completion | Exception]] = deque()
        self._delivering = False
        self._closed = False
        self._problem: BaseException | None = None

    # In the event loop

    async def ask(self, turn: Turn) -> Completion:
        """Returns the answer to a turn.

        Raises:
            UnansweredTurnError: If the engine has none.
        """
        with self._changed:
            heapq.heappush(self._waiting, (turn.place, next(self._number), turn))
            self._changed.notify_all()
        return await turn.answer

    def finish(self, row: OutputRow) -> None:
        """Hands in a finished row."""
        with self._changed:
            self._rows.append(row)
            self._changed.notify_all()

    def close(self, problem: BaseException | None = None) -> None:
        """Says that there will be no more turns; a problem is raised in the engine's thread."""
        with self._changed:
            self._closed = True
            self._problem = problem
            self._changed.notify_all()

    # In the engine's thread

    def __next__(self) -> EngineRequest | None:
        """Returns the next turn; None when there is none for now.

        Raises:
            StopIteration: When there will be no more.
        """
        while True:
            self.emit_finished()
            with self._changed:
                if not self._waiting:
                    if self._problem is not None:
                        raise self._problem
                    if self._closed:
                        raise StopIteration
                    if not self._out and not self._rows:
                        self._changed.wait(LOOK_EVERY_S)
                    if not self._waiting:
                        if self._rows or self._closed:
                            continue
                        return None
                turn = heapq.heappop(self._waiting)[2]
            request = self._request(turn)
            if request is not None:
                self._out[id(turn.row)] = turn
                return request

    def emit_finished(self) -> None:
        """Emits the rows that were handed in."""
        while self._rows:
            self._emit(self._rows.popleft())

    def done(self, request: EngineRequest, completion: Completion) -> None:
        """Takes an answer."""
        self._hand_back(self._out.pop(id(request.row)), completion)

    def failed(self, request: EngineRequest, reason: str) -> None:
        """Takes the reason why there is no answer."""
        self._refuse(self._out.pop(id(request.row)), reason)

    def _request(self, turn: Turn) -> EngineRequest | None:
        try:
            return single_request(turn.row, turn.block, turn.seed, self._engine)
        except ValueError as error:
            self._refuse(turn, str(error))
            return None

    def _refuse(self, turn: Turn, reason: str) -> None:
        self._hand_back(turn, UnansweredTurnError(reason))

    def _hand_back(self, turn: Turn, answer: Completion | Exception) -> None:
        """Wakes the event loop once for all answers that it has not taken yet."""
        self._answered.append((turn, answer))
        if not self._delivering:
            self._delivering = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._delivering = False  # first: what comes from now on is told of anew
        while self._answered:
            turn, answer = self._answered.popleft()
            if turn.answer.done():
                continue
            if isinstance(answer, Exception):
                turn.answer.set_exception(answer)
            else:
                turn.answer.set_result(answer)
