"""Trajectories as OpenTelemetry spans, by the semantic conventions for generative AI.

task → `invoke_agent` (a row) → `chat` (a turn of the model), `execute_tool` (a call), and below a
call that an agent answers its `invoke_agent` with spans of its own. They are made of what the
journal has when a row ends, so a row that several workers worked on has all its spans, and their
ids follow from the task: a row that is traced again has the same ones. The task's own span is made
where its result is put together, once for all shards and attempts.

They always lie in `traces/` of the task's folder, a request of OTLP to a line; and go to a
collector where the standard variable `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import msgspec

from mloc_dagster.executors.agent.spans import Collector, Span, Value, otlp_json
from mloc_dagster.results import (
    CallResult,
    Folder,
    FunctionCall,
    Message,
    ModelTurn,
    OutputRow,
    Steps,
    ToolCall,
    read_record,
    read_summary,
)
from mloc_dagster.schema import AgentSpec, FunctionTool

_SPANS_OF_A_FILE = 2048
_TASK_NAME = "traces/task.jsonl"
_OTHER = "_OTHER"
"""The conventions' `error.type` of what has no word of its own."""


class Traces:
    """Writes the spans of a shard's rows.

    Args:
        save: Keeps a file in the task's folder.
        task_id: The task.
        shard: The shard's key.
        model: What answers.
        engine: What runs it.
        spec: The task.
    """

    def __init__(
        self,
        save: Callable[[str, bytes], None],
        task_id: str,
        shard: str,
        model: str,
        engine: str,
        spec: AgentSpec,
    ) -> None:
        self._save = save
        self._task_id = task_id
        self._shard = shard
        self._model = model
        self._engine = engine
        self._agent = spec.agent
        self._remote = spec.model.source.type == "openai"
        self._spans: list[Span] = []
        self._number = 0
        self._collector = Collector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._collector.close()

    def add(self, row: OutputRow, steps: Steps, tools: Sequence[FunctionTool]) -> None:
        """Takes a finished row with all that was done for it, and the tools that it could call."""
        spans = list(self._of_row(row, steps, tools))
        self._spans += spans
        self._collector.send(spans)
        if len(self._spans) >= _SPANS_OF_A_FILE:
            self._write()

    def _of_row(
        self, row: OutputRow, steps: Steps, tools: Sequence[FunctionTool]
    ) -> Iterator[Span]:
        entries = (*steps.turns.values(), *steps.results.values())
        if not entries:
            return
        failed = None if row.error is None else _OTHER if row.stop == "error" else row.stop
        attributes: dict[str, Value | None] = {
            **self._agent_attributes("agent", row.index),
            "gen_ai.output.type": None if self._agent.output_schema is None else "json",
            "gen_ai.usage.input_tokens": row.prompt_tokens,
            "gen_ai.usage.output_tokens": row.completion_tokens,
            "mloc.row.index": row.index,
            "mloc.agent.stop": row.stop,
            "mloc.agent.steps": row.steps,
            "error.type": failed,
        }
        if self._agent.trace_content:
            attributes |= self._content(row, tools)
        path = (str(row.index),)
        yield Span(
            name="invoke_agent agent",
            trace=self._task_id,
            path=path,
            parent=(),
            start_s=min(each.ended_at - each.seconds for each in entries),
            end_s=max(each.ended_at for each in entries),
            attributes=attributes,
            error=row.error,
        )
        yield from self._of_steps(path, steps)

    def _of_steps(self, agent: tuple[str, ...], steps: Steps) -> Iterator[Span]:
        """Yields the spans below that of an agent, by the place of its own."""
        for _, turn in sorted(steps.turns.items()):
            yield self._turn(agent, turn)
        for _, result in sorted(steps.results.items()):
            yield self._call(agent, result, steps)
        for (number, call), below in sorted(steps.workers.items()):
            if below.turns:
                yield from self._of_worker(agent, number, call, steps, below)

    def _of_worker(
        self, agent: tuple[str, ...], number: int, call: str, steps: Steps, below: Steps
    ) -> Iterator[Span]:
        result = steps.results.get((number, call))
        function = _function(steps, number, call)
        name = "agent" if function is None else function.name
        turns = below.turns.values()
        path = (*agent, str(number), call, "agent")
        entries = (*turns, *below.results.values())
        failed = result is None or result.failed
        yield Span(
            name=f"invoke_agent {name}",
            trace=self._task_id,
            path=path,
            parent=path[:-1] if result is not None else agent,  # cut off, the call has no span
            start_s=min(each.ended_at - each.seconds for each in entries),
            end_s=max(each.ended_at for each in entries),
            attributes={
                **self._agent_attributes(name, entries[0].index),
                "gen_ai.usage.input_tokens": sum(each.prompt_tokens for each in turns),
                "gen_ai.usage.output_tokens": sum(each.completion_tokens for each in turns),
                "mloc.agent.steps": len(turns),
                "error.type": _OTHER if failed else None,
            },
            error="it came to no answer" if failed else None,
        )
        yield from self._of_steps(path, below)

    def _agent_attributes(self, name: str, index: int) -> dict[str, Value | None]:
        return {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": name,
            "gen_ai.conversation.id": self._conversation(index),
            "gen_ai.request.model": self._model,
            "gen_ai.provider.name": self._engine,
        }

    def _content(self, row: OutputRow, tools: Sequence[FunctionTool]) -> dict[str, Value | None]:
        asked = [Message("user", row.prompt)] if isinstance(row.prompt, str) else row.prompt
        told = self._agent.instructions
        return {
            "gen_ai.system_instructions": told and _json([{"type": "text", "content": told}]),
            "gen_ai.tool.definitions": _json(list(map(_definition, tools))) if tools else None,
            "gen_ai.input.messages": _json(list(map(_message, asked))),
            "gen_ai.output.messages": _json([_answer(row.output, None, [], "stop")]),
        }

    def _turn(self, agent: tuple[str, ...], turn: ModelTurn) -> Span:
        said = None
        if self._agent.trace_content:
            reason = "tool_call" if turn.finish_reason == "tool_calls" else turn.finish_reason
            said = _json([_answer(turn.text, turn.reasoning, turn.tool_calls, reason)])
        return Span(
            name=f"chat {self._model}",
            trace=self._task_id,
            path=(*agent, str(turn.turn)),
            parent=agent,
            start_s=turn.ended_at - turn.seconds,
            end_s=turn.ended_at,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.conversation.id": self._conversation(turn.index),
                "gen_ai.request.model": self._model,
                "gen_ai.provider.name": self._engine,
                "gen_ai.response.finish_reasons": (turn.finish_reason,),
                "gen_ai.usage.input_tokens": turn.prompt_tokens,
                "gen_ai.usage.output_tokens": turn.completion_tokens,
                "mloc.usage.cached_tokens": turn.cached_tokens,  # 1.38 has no name for them
                "gen_ai.output.messages": said,
            },
            remote=self._remote,
        )

    def _call(self, agent: tuple[str, ...], result: CallResult, steps: Steps) -> Span:
        attributes: dict[str, Value | None] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": result.tool,
            "gen_ai.tool.call.id": result.call,
            "gen_ai.tool.type": "function",
            "error.type": _OTHER if result.failed else None,
        }
        if self._agent.trace_content:
            function = _function(steps, result.turn, result.call)
            attributes |= {
                "gen_ai.tool.call.arguments": None if function is None else function.arguments,
                "gen_ai.tool.call.result": result.output,
            }
        return Span(
            name=f"execute_tool {result.tool}",
            trace=self._task_id,
            path=(*agent, str(result.turn), result.call),
            parent=agent,
            start_s=result.ended_at - result.seconds,
            end_s=result.ended_at,
            attributes=attributes,
            error="the tool failed" if result.failed else None,
        )

    def _conversation(self, index: int) -> str:
        return f"{self._task_id}/{index}"

    def _write(self) -> None:
        if not self._spans:
            return
        spans, self._spans = self._spans, []
        self._number += 1
        name = f"traces/{self._shard}-{self._number:04d}-{secrets.token_hex(4)}.jsonl"
        self._save(name, otlp_json(spans))


def trace_task(folder: Folder) -> None:
    """Writes and sends the span around all rows of a finished task.

    It begins with the submission, since an attempt that left no row leaves no other trace of when
    it began. Doing it again changes nothing, as long as the result is the same.
    """
    record, summary = read_record(folder), read_summary(folder)
    errors = f"{summary.errors:,} of {summary.rows:,} rows ended with an error"
    span = Span(
        name=f"task {record.node}",
        trace=summary.task_id,
        start_s=record.submitted_at.timestamp(),
        end_s=summary.finished_at.timestamp(),
        attributes={
            "mloc.task.id": summary.task_id,
            "mloc.task.type": record.task_type,
            "mloc.template": record.template_name,
            "mloc.rows": summary.rows,
            "mloc.errors": summary.errors,
            **{f"mloc.agent.{name}": number for name, number in summary.counts.items()},
            "mloc.budget": None if summary.budget is None else str(summary.budget),
            "error.type": None if summary.ok else _OTHER,
        },
        error=None if summary.ok else errors,
    )
    data = otlp_json([span])
    if folder.exists(_TASK_NAME) and folder.read_bytes(_TASK_NAME) == data:
        return
    folder.write_bytes(_TASK_NAME, data)
    collector = Collector()
    collector.send([span])
    collector.close()


def _function(steps: Steps, turn: int, call: str) -> FunctionCall | None:
    said = steps.turns.get(turn)
    calls = () if said is None else said.tool_calls
    return next((each.function for each in calls if each.id == call), None)


# What the conventions' JSON Schemas of messages and tools say.


def _definition(tool: FunctionTool) -> dict[str, object]:
    function = tool.function
    return {
        "type": "function",
        "name": function.name,
        "description": function.description,
        "parameters": function.parameters,
    }


def _message(message: Message) -> dict[str, object]:
    if message.role == "tool":
        answer = {
            "type": "tool_call_response",
            "id": message.tool_call_id,
            "response": message.content,
        }
        return {"role": "tool", "parts": [answer]}
    parts = _parts(message.content, message.reasoning, message.tool_calls or [])
    return {"role": message.role, "parts": parts}


def _answer(
    text: str, reasoning: str | None, calls: Sequence[ToolCall], reason: str
) -> dict[str, object]:
    parts = _parts(text, reasoning, calls)
    return {"role": "assistant", "parts": parts, "finish_reason": reason}


def _parts(
    content: str | list[dict[str, Any]], reasoning: str | None, calls: Sequence[ToolCall]
) -> list[object]:
    parts: list[object] = []
    if reasoning:
        parts.append({"type": "reasoning", "content": reasoning})
    if isinstance(content, str):
        content = [{"type": "text", "text": content}] if content else []
    for each in content:
        if each.get("type") == "text":
            parts.append({"type": "text", "content": each["text"]})
        else:
            url = each.get("image_url", {}).get("url", "")
            parts.append({"type": "uri", "modality": "image", "uri": url})
    for call in calls:
        function = call.function
        parts.append(
            {
                "type": "tool_call",
                "id": call.id,
                "name": function.name,
                "arguments": function.arguments,
            }
        )
    return parts


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=dict).decode()
