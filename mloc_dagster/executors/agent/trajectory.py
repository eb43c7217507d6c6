"""One row of an agent: from its task to its answer, each step noted, and none done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec
from pydantic_ai import Agent
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.usage import UsageLimits

from mloc_dagster.executors.agent.blocks import Blocks
from mloc_dagster.executors.agent.counts import Counts
from mloc_dagster.executors.agent.engine_model import (
    EngineModel,
    history_of,
    user_content,
)
from mloc_dagster.executors.agent.replay import Record, RowFailedError, tool_calls
from mloc_dagster.executors.agent.totals import Totals
from mloc_dagster.executors.agent.turns import Turn, TurnQueue, UnansweredTurnError
from mloc_dagster.executors.base import ShardContext
from mloc_dagster.executors.row_requests import row_seed, turn_seed, worker_seed
from mloc_dagster.results import (
    CallBegun,
    CallKey,
    CallResult,
    InputRow,
    Message,
    ModelTurn,
    OutputRow,
    Rates,
    Steps,
)
from mloc_dagster.schema import AgentBudget, AgentLoop, AgentSpec, FunctionTool, Inference, Worker
from mloc_dagster.tools import FailedCall, ToolFailure, calling

ANSWER_NOW = (
    "No tool can be called any more. Answer now, as well as you can, with what you have found out."
)

# Of pydantic-ai's own, which would end a row at its 50th turn: a row's are in `_check_limits`.
_NO_LIMITS = UsageLimits(request_limit=None)

UNKNOWN_OUTCOME = "outcome unknown"

AGENT_EFFECT = "agent"
"""The effect of tools that agents answer: what they change, their own calls say."""


class LimitReachedError(Exception):
    """A trajectory came to the end of what it may spend.

    Args:
        stop: Which limit: `max_steps` or `budget`.
        message: In words.
    """

    def __init__(self, stop: str, message: str) -> None:
        super().__init__(message)
        self.stop = stop


@dataclass(frozen=True, slots=True)
class Ending:
    """How a trajectory ended.

    Attributes:
        output: The answer; empty where there is none.
        stop: What ended it.
        error: Why there is no answer.
    """

    output: str
    stop: str
    error: str | None = None


class Trajectory:
    """A row on its way, or a call that an agent answers.

    Args:
        row: The row.
        place: Its place among the rows that were begun.
        spec: The task.
        queue: Takes turns to the engine.
        context: The shard's, which keeps what is done and hears what was spent.
        known: What earlier attempts have done; what is done here is added.
        seed: The plan's.
        blocks: Blocks with tools, shared by all trajectories of the shard.
        counts: Hears of each step, of all of them.
        task_id: Stands in the keys of calls.
        record: What was done in the task that this one replays; None where it replays none.
    """

    def __init__(
        self,
        row: InputRow,
        place: int,
        spec: AgentSpec,
        queue: TurnQueue,
        context: ShardContext,
        known: Steps,
        seed: int,
        blocks: Blocks,
        counts: Counts,
        task_id: str,
        record: Record | None = None,
    ) -> None:
        self.row = row
        self._task_id = task_id
        self.agent: AgentLoop = spec.agent
        self.parent: Trajectory | None = None
        self.caller: CallKey | None = None
        self.record = record
        self._place = place
        self._inference = spec.inference
        self._rates = Rates.of(spec.resources)
        self._queue = queue
        self._journal = context.journal
        self._spend = context.spend
        self.steps = known
        self._spent = Totals()  # with what workers take as they go; of copies it is the same one
        for each in known.with_workers():
            self._spent.add_all(each)
        self._blocks = blocks
        self._counts = counts
        self._began = time.monotonic() - known.seconds
        self.begin(row_seed(spec.inference, seed, row.index))

    def of_worker(self, worker: Worker, call_id: str, task: str) -> Trajectory:
        """Returns the trajectory of an agent that answers a call of this one.

        Args:
            worker: The agent.
            call_id: The call.
            task: What it is asked.
        """
        found = copy(self)
        found.row = msgspec.structs.replace(self.row, prompt=task)
        turn = self.turn
        found.agent, found.parent, found.caller = worker, self, (turn, call_id)
        found.steps = self.steps.of_call(found.caller)
        place = self.place_of(call_id)
        seed = worker_seed(self._inference, self._seed, turn, place)
        found.record = None if self.record is None else self.record.of_call(turn, place)
        found.begin(seed)
        return found

    def begin(self, seed: int) -> None:
        """Starts with the first turn."""
        self._seed = seed
        self._turn = 0
        self._counted = -1
        self._chat: list[Message] = []
        self._heard = 0
        self.tools: Sequence[FunctionTool] = ()
        self.totals = Totals()

    @property
    def seconds(self) -> float:
        """Seconds that workers have spent on the row."""
        return time.monotonic() - self._began

    @property
    def own_seconds(self) -> float:
        """Seconds that workers have spent on this trajectory, of a call on its agent's alone."""
        if self.parent is None:
            return self.seconds
        asked = self.parent.steps.turns[self.parent.turn].row_s
        return max(0.0, self.steps.seconds - asked)

    async def run(self, agent: Agent[Trajectory, Any], name: str, label: str) -> OutputRow:
        """Carries the row on to its end.

        Args:
            agent: The loop.
            name: The model.
            label: The engine.
        """
        try:
            ending = await self.carried_on(agent, EngineModel(self.ask, name, label))
        except RowFailedError as failure:
            ending = Ending("", "error", str(failure))
        self._count_workers()
        totals = self.totals
        return OutputRow(
            index=self.row.index,
            prompt=self.row.prompt,
            output=ending.output,
            finish_reason="completed" if ending.error is None else "failed",
            error=ending.error,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            reasoning_tokens=totals.reasoning_tokens,
            cached_tokens=totals.cached_tokens,
            engine_s=totals.engine_s,
            latency_s=self.seconds,
            engine=label,
            custom_id=self.row.custom_id,
            tool_calls=totals.calls or None,
            steps=totals.steps,
            stop=ending.stop,
            failed_calls=totals.failed_calls,
        )

    async def carried_on(self, agent: Agent[Trajectory, Any], model: EngineModel) -> Ending:
        """Goes on to the end.

        Args:
            agent: The loop.
            model: Asks this trajectory for turns.

        Raises:
            RowFailedError: If the whole row has to end.
        """
        try:
            async with asyncio.timeout(max(0.0, self.agent.timeout - self.own_seconds)):
                return await self._answered(agent, model)
        except TimeoutError:
            return Ending("", "timeout", f"no answer within {self.agent.timeout:g} s")
        except LimitReachedError as limit:
            return Ending("", limit.stop, str(limit))
        except UnansweredTurnError as failure:
            return Ending("", "error", str(failure))
        except AgentRunError as failure:
            return Ending("", "error", f"the model does not come to an answer: {failure}")

    async def _answered(self, agent: Agent[Trajectory, Any], model: EngineModel) -> Ending:
        *before, last = _chat(self.row)
        try:
            result = await agent.run(
                user_content(last),
                message_history=history_of(before, self.agent.instructions) or None,
                model=model,
                deps=self,
                usage_limits=_NO_LIMITS,
            )
        except LimitReachedError as limit:
            if self.agent.on_limit == "fail":
                raise
            return Ending(await self._answer_now(), limit.stop)
        output = result.output
        return Ending(output if isinstance(output, str) else _json(output), "answer")

    async def _answer_now(self) -> str:
        """Asks once more, without tools."""
        block = self._blocks.of((), self.agent.output_schema)
        turn = await self._next([*self._chat, Message("user", ANSWER_NOW)], block)
        return turn.text

    # What pydantic-ai asks for

    async def ask(self, chat: list[Message], tools: Sequence[FunctionTool]) -> ModelTurn:
        """Returns the next turn of the model, of an earlier attempt if that had it.

        Raises:
            LimitReachedError: If the row may not have another one, or not the calls in it.
            RowFailedError: If it calls otherwise than the one that is replayed.
        """
        self._chat, self.tools = chat, tools
        self._count_workers()
        self._check_limits()
        block = self._blocks.of(tools, None)
        if self._journal is not None and self.parent is None:
            self._blocks.keep_brief(block, self.agent.instructions, self._journal)
        turn = await self._next(chat, block)
        for budget, spent in self._purses():
            most = budget.tool_calls
            if most is not None and sum(len(each.calls) for each in spent) > most:
                self._chat = [*chat, Message("assistant", turn.text)]
                raise LimitReachedError("budget", f"more than {most} calls of tools (agent.budget)")
        if self.record is not None:
            self.record.check(turn)
        return turn

    async def call(
        self,
        turn: int,
        call_id: str,
        tool: str,
        effect: str,
        run: Callable[[], Awaitable[Any]],
        ask: Callable[[str], Awaitable[str | None]],
    ) -> str:
        """Returns what a tool answers, or what it answered an earlier attempt.

        Args:
            turn: The turn that makes the call.
            call_id: The call.
            tool: What is called.
            effect: What a call of it changes.
            run: Makes the call.
            ask: Says what came of the call of a key; None if nothing did.

        Raises:
            RowFailedError: If an earlier attempt may have made a call that changes something, or
                the row has to end for what a worker met.
        """
        known = self.steps.results.get((turn, call_id))
        if known is not None:
            self.totals.failed_calls += known.failed
            return known.output
        key = self._key_of(turn, call_id)
        begun = CallBegun(self.row.index, turn, call_id, tool, self.caller)
        with calling(key):
            if effect != "write":
                return await self._called(begun, effect, run)
            if (turn, call_id) in self.steps.begun:
                run = await self._not_again(begun, run, lambda: ask(key))
            return await _to_its_end(self._called(begun, effect, run))

    def _key_of(self, turn: int, call_id: str) -> str:
        """Returns what tells a call from all others, the same in each attempt."""
        above = f"{self._task_id}/{self.row.index}"
        if self.parent is not None and self.caller is not None:
            above = self.parent._key_of(*self.caller)  # noqa: SLF001
        return f"{above}/{turn}/{quote(call_id, safe='')}"

    async def _not_again(
        self,
        begun: CallBegun,
        run: Callable[[], Awaitable[Any]],
        ask: Callable[[], Awaitable[str | None]],
    ) -> Callable[[], Awaitable[Any]]:
        """Returns what to do about a call that an earlier attempt began: it is not made again.

        Only if the tool says that it was not made, it is made.
        """
        try:
            outcome = await ask()
        except ToolFailure as failure:
            raise RowFailedError(
                f"{UNKNOWN_OUTCOME}: the worker ended during call {begun.call} of {begun.tool!r}, "
                f"which changes something: it may or may not have been done, {failure}, and it is "
                "not done again"
            ) from None

        async def told() -> str:
            return outcome or ""

        return run if outcome is None else told

    async def _called(
        self, begun: CallBegun, effect: str, run: Callable[[], Awaitable[Any]]
    ) -> str:
        if effect in ("idempotent", "write"):
            await self._begin(begun)
        began = time.monotonic()
        try:
            answer = await run()  # tools keep to their time limit themselves
            output, failed = _text_of(answer), isinstance(answer, FailedCall)
        except RowFailedError:
            raise
        except Exception as error:  # noqa: BLE001  the model hears of it, and goes on
            output, failed = f"{begun.tool} failed: {error}", True
        result = CallResult(
            index=self.row.index,
            turn=begun.turn,
            call=begun.call,
            tool=begun.tool,
            output=output,
            failed=failed,
            seconds=time.monotonic() - began,
            row_s=self.seconds,
            ended_at=time.time(),
            caller=self.caller,
        )
        self.totals.failed_calls += failed
        await self._note(result, now=effect == "write")
        return output

    async def _begin(self, call: CallBegun) -> None:
        self._add(call)
        if self._journal is not None:
            # The store may be slow, and other trajectories go on meanwhile.
            await asyncio.to_thread(self._journal.begin, call)

    @property
    def turn(self) -> int:
        """The turn whose calls are being made."""
        return self._turn - 1

    def place_of(self, call_id: str) -> int:
        """Returns which of that turn's calls one is."""
        return [each.id for each in tool_calls(self.steps.turns[self.turn])].index(call_id)

    def _count_workers(self) -> None:
        """Counts what the agents have taken that the last turn called.

        Not as they go: what one of them may still take does not depend on how far others are, so
        that a replay ends where the first attempt did.
        """
        if self._counted == self.turn:
            return
        self._counted = self.turn
        for each in self.steps.workers_of(self.turn):
            self.totals.add_all(each)

    async def _next(self, chat: list[Message], block: Inference) -> ModelTurn:
        number, self._turn = self._turn, self._turn + 1
        turn = self.steps.turns.get(number)
        if turn is None:
            turn = await self._compute(number, chat, block)
            await self._note(turn)
            self._spent.add(turn)
        self._heard = len(chat) + 1
        self.totals.add(turn)
        self._spend(self.row.index, self._spent.spend)
        return turn

    def _told(self, number: int, chat: list[Message]) -> list[Message]:
        """Returns what was said since the turn before, if the journal could not tell it anyway."""
        news = chat[self._heard :] if self._heard else []
        known = {call for turn, call in self.steps.results if turn == number - 1}
        return news if any(each.tool_call_id not in known for each in news) else []

    async def _compute(self, number: int, chat: list[Message], block: Inference) -> ModelTurn:
        began = time.monotonic()
        row = msgspec.structs.replace(self.row, prompt=chat)
        seed = turn_seed(block, self._seed, number)
        completion = await self._queue.ask(Turn(row, block, seed, self._place))
        answer = completion.answers[0]
        return ModelTurn(
            index=self.row.index,
            turn=number,
            text=answer.text,
            reasoning=answer.reasoning,
            tool_calls=list(answer.tool_calls),
            finish_reason=answer.finish_reason,
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=answer.tokens,
            reasoning_tokens=answer.reasoning_tokens,
            cached_tokens=completion.cached_tokens,
            engine_s=completion.engine_s,
            seconds=time.monotonic() - began,
            row_s=self.seconds,
            ended_at=time.time(),
            told=self._told(number, chat),
            caller=self.caller,
        )

    async def _note(self, entry: ModelTurn | CallResult, *, now: bool = False) -> None:
        self._add(entry)
        self._counts.add(entry)
        if self._journal is None:
            return
        if now:
            # The store may be slow, and other trajectories go on meanwhile.
            await asyncio.to_thread(self._journal.add, entry, now=True)
        else:
            self._journal.add(entry)

    def _add(self, entry: ModelTurn | CallBegun | CallResult) -> None:
        row = self if self.parent is None else self.parent
        row.steps.add(entry)

    def _check_limits(self) -> None:
        if self._turn >= self.agent.max_steps:
            raise LimitReachedError("max_steps", f"no answer in {self.agent.max_steps} steps")
        for budget, totals in self._purses():
            spent = sum(each.tokens for each in totals)
            if budget.tokens is not None and spent >= budget.tokens:
                raise LimitReachedError(
                    "budget", f"{spent:,} tokens were spent of {budget.tokens:,} (agent.budget)"
                )
            cost = sum(self._rates.cost(each) or 0.0 for each in totals)
            if budget.cost is not None and cost >= budget.cost:
                raise LimitReachedError(
                    "budget", f"{cost:.6g} were spent of {budget.cost:.6g} (agent.budget.cost)"
                )

    def _purses(self) -> Iterator[tuple[AgentBudget, Sequence[Totals]]]:
        """Yields the budgets that hold here, each with what counts for it."""
        yield self.agent.budget, (self.totals,)
        if self.parent is not None:
            yield self.parent.agent.budget, (self.parent.totals, self.totals)


async def _to_its_end[T](work: Coroutine[Any, Any, T]) -> T:
    """Awaits what is not cut off: a caller that is cancelled meanwhile is cancelled after it."""
    task = asyncio.create_task(work)
    cut: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cut = error
    if cut is not None:
        task.exception()  # seen
        raise cut
    return task.result()


def _chat(row: InputRow) -> list[Message]:
    if isinstance(row.prompt, str):
        return [Message("user", row.prompt)]
    return row.prompt


def _text_of(output: object) -> str:
    # A plain one: msgspec encodes no subclasses, such as the text of a call that failed.
    return str(output) if isinstance(output, str) else _json(output)


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
