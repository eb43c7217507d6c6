"""One row of an agent: from its task to its answer, each step noted, and none done twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import AgentRunError
from pydantic_ai.toolsets import ToolsetTool, WrapperToolset

from mloc_dagster.executors.agent.counts import Counts
from mloc_dagster.executors.agent.engine_model import (
    EngineModel,
    history_of,
    user_content,
)
from mloc_dagster.executors.agent.turns import Turn, TurnQueue, UnansweredTurnError
from mloc_dagster.executors.base import ShardContext
from mloc_dagster.executors.row_requests import row_seed, turn_seed
from mloc_dagster.results import (
    CallBegun,
    CallResult,
    InputRow,
    Message,
    ModelTurn,
    OutputRow,
    Rates,
    Spend,
    Steps,
    ToolCall,
)
from mloc_dagster.schema import AgentSpec, FunctionTool, Inference
from mloc_dagster.tools import FailedCall

ANSWER_NOW = (
    "No tool can be called any more. Answer now, as well as you can, with what you have found out."
)

UNKNOWN_OUTCOME = "outcome unknown"


class LimitReachedError(Exception):
    """A trajectory came to the end of what it may spend.

    Args:
        stop: Which limit: `max_steps` or `budget`.
        message: In words.
    """

    def __init__(self, stop: str, message: str) -> None:
        super().__init__(message)
        self.stop = stop


class RowFailedError(Exception):
    """The row ends with an error."""


@dataclass(slots=True)
class Totals:
    """What a trajectory has taken so far."""

    steps: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cached_tokens: int = 0
    engine_s: float = 0.0
    failed_calls: int = 0
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    @property
    def spend(self) -> Spend:
        """What of it is paid for."""
        return Spend(self.prompt_tokens, self.cached_tokens, self.completion_tokens, self.engine_s)

    def add(self, turn: ModelTurn) -> None:
        """Counts a turn."""
        self.steps += 1
        self.prompt_tokens += turn.prompt_tokens
        self.completion_tokens += turn.completion_tokens
        self.reasoning_tokens += turn.reasoning_tokens
        self.cached_tokens += turn.cached_tokens
        self.engine_s += turn.engine_s
        self.calls += turn.tool_calls


class Trajectory:
    """A row on its way.

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
    ) -> None:
        self.row = row
        self.agent = spec.agent
        self._place = place
        self._inference = spec.inference
        self._rates = Rates.of(spec.resources)
        self._queue = queue
        self._journal = context.journal
        self._spend = context.spend
        self.steps = known
        self._seed = row_seed(spec.inference, seed, row.index)
        self._blocks = blocks
        self._counts = counts
        self._began = time.monotonic() - known.seconds
        self._turn = 0
        self._chat: list[Message] = []
        self.tools: Sequence[FunctionTool] = ()
        self.totals = Totals()

    @property
    def seconds(self) -> float:
        """Seconds that workers have spent on the row."""
        return time.monotonic() - self._began

    async def run(self, agent: Agent[Trajectory, Any], name: str, label: str) -> OutputRow:
        """Carries the row on to its end.

        Args:
            agent: The loop.
            name: The model.
            label: The engine.
        """
        error = None
        output, stop = "", "answer"
        try:
            async with asyncio.timeout(max(0.0, self.agent.timeout - self.seconds)):
                output, stop = await self._answered(agent, EngineModel(self.ask, name, label))
        except TimeoutError:
            stop, error = "timeout", f"no answer within {self.agent.timeout:g} s"
        except LimitReachedError as limit:
            stop, error = limit.stop, str(limit)
        except (RowFailedError, UnansweredTurnError) as failure:
            stop, error = "error", str(failure)
        except AgentRunError as failure:
            stop, error = "error", f"the model does not come to an answer: {failure}"
        totals = self.totals
        return OutputRow(
            index=self.row.index,
            prompt=self.row.prompt,
            output=output,
            finish_reason="completed" if error is None else "failed",
            error=error,
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
            stop=stop,
            failed_calls=totals.failed_calls,
        )

    async def _answered(self, agent: Agent[Trajectory, Any], model: EngineModel) -> tuple[str, str]:
        *before, last = _chat(self.row)
        try:
            result = await agent.run(
                user_content(last),
                message_history=history_of(before, self.agent.instructions) or None,
                model=model,
                deps=self,
            )
        except LimitReachedError as limit:
            if self.agent.on_limit == "fail":
                raise
            return await self._answer_now(), limit.stop
        output = result.output
        return output if isinstance(output, str) else _json(output), "answer"

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
        """
        self._chat, self.tools = chat, tools
        self._check_limits()
        turn = await self._next(chat, self._blocks.of(tools, None))
        most = self.agent.budget.tool_calls
        if most is not None and len(self.totals.calls) > most:
            self._chat = [*chat, Message("assistant", turn.text)]
            raise LimitReachedError("budget", f"more than {most} calls of tools (agent.budget)")
        return turn

    async def call(self, turn: int, call_id: str, tool: str, effect: str, run: Any) -> str:
        """Returns what a tool answers, or what it answered an earlier attempt.

        Raises:
            RowFailedError: If an earlier attempt may have made a call that changes something.
        """
        key = (turn, call_id)
        known = self.steps.results.get(key)
        if known is not None:
            self.totals.failed_calls += known.failed
            return known.output
        if effect == "write":
            if key in self.steps.begun:
                raise RowFailedError(
                    f"{UNKNOWN_OUTCOME}: the worker ended during call {call_id} of {tool!r}, which "
                    "changes something: it may or may not have been done, and is not done again"
                )
            await self._note(CallBegun(self.row.index, turn, call_id, tool), now=True)
        began = time.monotonic()
        try:
            answer = await run()  # tools keep to their time limit themselves
            output, failed = _text_of(answer), isinstance(answer, FailedCall)
        except Exception as error:  # noqa: BLE001  the model hears of it, and goes on
            output, failed = f"{tool} failed: {error}", True
        result = CallResult(
            index=self.row.index,
            turn=turn,
            call=call_id,
            tool=tool,
            output=output,
            failed=failed,
            seconds=time.monotonic() - began,
            row_s=self.seconds,
            ended_at=time.time(),
        )
        self.totals.failed_calls += failed
        await self._note(result, now=effect == "write")
        return output

    @property
    def turn(self) -> int:
        """The turn whose calls are being made."""
        return self._turn - 1

    async def _next(self, chat: list[Message], block: Inference) -> ModelTurn:
        number, self._turn = self._turn, self._turn + 1
        turn = self.steps.turns.get(number)
        if turn is None:
            turn = await self._compute(number, chat, block)
            await self._note(turn)
        self.totals.add(turn)
        self._spend(self.row.index, self.totals.spend)
        return turn

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
        )

    async def _note(self, entry: ModelTurn | CallBegun | CallResult, *, now: bool = False) -> None:
        self.steps.add(entry)
        self._counts.add(entry)
        if self._journal is None:
            return
        if now:
            # The store may be slow, and other trajectories go on meanwhile.
            await asyncio.to_thread(self._journal.add, entry, now=True)
        else:
            self._journal.add(entry)

    def _check_limits(self) -> None:
        totals, budget = self.totals, self.agent.budget
        if totals.steps >= self.agent.max_steps:
            raise LimitReachedError("max_steps", f"no answer in {self.agent.max_steps} steps")
        spent = totals.prompt_tokens + totals.completion_tokens
        if budget.tokens is not None and spent >= budget.tokens:
            raise LimitReachedError(
                "budget", f"{spent:,} tokens were spent of {budget.tokens:,} (agent.budget)"
            )
        cost = self._rates.cost(totals) or 0.0
        if budget.cost is not None and cost >= budget.cost:
            raise LimitReachedError(
                "budget", f"{cost:.6g} were spent of {budget.cost:.6g} (agent.budget.cost)"
            )


class JournaledTools(WrapperToolset[Trajectory]):
    """Tools whose answers are noted in the journal of the trajectory that calls them."""

    async def call_tool(
        self,
        name: str,
        tool_args: dict[str, Any],
        ctx: RunContext[Trajectory],
        tool: ToolsetTool[Trajectory],
    ) -> str:
        """Calls a tool, once."""
        effect = (tool.tool_def.metadata or {}).get("effect", "write")
        row = ctx.deps
        return await row.call(
            row.turn,
            ctx.tool_call_id or "",
            name,
            effect,
            lambda: self.wrapped.call_tool(name, tool_args, ctx, tool),
        )


class Blocks:
    """The `inference` block with the tools that a turn offers; equal ones are one object.

    Args:
        inference: The task's.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._known: dict[tuple[int, int], tuple[object, object, Inference]] = {}

    def of(self, tools: Sequence[FunctionTool], form: object) -> Inference:
        """Returns the block with these tools, or for an answer of this form."""
        key = (id(tools), id(form))
        known = self._known.get(key)
        if known is None:
            fields: dict[str, Any] = {"tools": tools}
            if form is not None:
                fields["structured_outputs"] = {"json": form}
            given = self._inference.model_dump(by_alias=True, exclude_unset=True)
            block = Inference.model_validate({**given, **fields})
            known = self._known[key] = tools, form, block  # kept, so that the ids stay theirs
        return known[2]


def _chat(row: InputRow) -> list[Message]:
    if isinstance(row.prompt, str):
        return [Message("user", row.prompt)]
    return row.prompt


def _text_of(output: object) -> str:
    # A tool's own class of text is written as text: the journal takes no other.
    return str(output) if isinstance(output, str) else _json(output)


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
