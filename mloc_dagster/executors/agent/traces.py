"""Trajectories as OpenTelemetry spans, by the semantic conventions for generative AI.

task → `invoke_agent` (a row) → `chat` (a turn of the model), `execute_tool` (a call), and below a
call that an agent answers its `invoke_agent` with spans of its own. They are made
of what the journal has when a row ends, so a row that several workers worked on has all its spans,
and their ids follow from the task: a row that is traced again has the same ones.

They always lie in `traces/` of the task's folder, in OTLP's JSON form, a request to a line, which
OpenTelemetry's collector reads (`otlpjsonfile`); and go to a collector where the standard variable
`OTEL_EXPORTER_OTLP_ENDPOINT` names one.
"""

from __future__ import annotations

import json
import os
import secrets
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from mloc_dagster import __version__
from mloc_dagster.results import CallResult, FunctionCall, ModelTurn, OutputRow, Steps

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

SCHEMA_URL = "https://opentelemetry.io/schemas/1.38.0"
"""The version of the conventions that the names follow."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SPANS_OF_A_FILE = 2048
_NANOSECONDS = 1_000_000_000


class Traces:
    """Writes the spans of a shard's rows.

    Args:
        save: Keeps a file in the task's folder.
        task_id: The task.
        shard: The shard's key.
        model: What answers.
        engine: What runs it.
        content: Whether prompts, answers, arguments and results stand in them.
    """

    def __init__(
        self,
        save: Callable[[str, bytes], None],
        task_id: str,
        shard: str,
        model: str,
        engine: str,
        *,
        content: bool,
    ) -> None:
        self._save = save
        self._task_id = task_id
        self._shard = shard
        self._model = model
        self._engine = engine
        self._content = content
        self._spans: list[ReadableSpan] = []
        self._number = 0
        self._sent = ExitStack()
        self._processor = _processor()
        if self._processor is not None:
            self._sent.callback(self._processor.shutdown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._sent.close()

    def add(self, row: OutputRow, steps: Steps) -> None:
        """Takes a finished row with all that was done for it."""
        spans = list(self._of_row(row, steps))
        self._spans += spans
        if self._processor is not None:
            for each in spans:
                self._processor.on_end(each)
        if len(self._spans) >= _SPANS_OF_A_FILE:
            self._write()

    def _of_row(self, row: OutputRow, steps: Steps) -> Iterator[ReadableSpan]:
        ends = [each.ended_at for each in (*steps.turns.values(), *steps.results.values())]
        begins = [
            each.ended_at - each.seconds
            for each in (*steps.turns.values(), *steps.results.values())
        ]
        if not ends:
            return
        name = str(row.index)
        yield self._span(
            "invoke_agent agent",
            (name,),
            (),
            (min(begins), max(ends)),
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": "agent",
                "gen_ai.request.model": self._model,
                "gen_ai.provider.name": self._engine,
                "gen_ai.usage.input_tokens": row.prompt_tokens,
                "gen_ai.usage.output_tokens": row.completion_tokens,
                "mloc.row.index": row.index,
                "mloc.agent.stop": row.stop,
                "mloc.agent.steps": row.steps,
                **({"gen_ai.output.messages": row.output} if self._content else {}),
            },
            row.error,
        )
        yield from self._of_steps((name,), steps)

    def _of_steps(self, agent: Sequence[str], steps: Steps) -> Iterator[ReadableSpan]:
        """Yields the spans below that of an agent, by the place of its own."""
        for number, turn in sorted(steps.turns.items()):
            yield self._turn(agent, number, turn)
        for (number, call), result in sorted(steps.results.items()):
            yield self._call(agent, number, call, result, _arguments(steps, number, call))
        for (number, call), below in sorted(steps.workers.items()):
            if below.turns:
                yield from self._of_worker(agent, number, call, steps, below)

    def _of_worker(
        self, agent: Sequence[str], number: int, call: str, steps: Steps, below: Steps
    ) -> Iterator[ReadableSpan]:
        result = steps.results.get((number, call))
        name = _tool_of(steps, number, call)
        path = (*agent, str(number), call, "agent")
        entries = (*below.turns.values(), *below.results.values())
        yield self._span(
            f"invoke_agent {name}",
            path,
            path[:-1] if result is not None else agent,  # cut off, the call has no span
            (min(_span_of(each)[0] for each in entries), max(each.ended_at for each in entries)),
            {
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.agent.name": name,
                "gen_ai.request.model": self._model,
                "gen_ai.provider.name": self._engine,
                "gen_ai.usage.input_tokens": sum(
                    each.prompt_tokens for each in below.turns.values()
                ),
                "gen_ai.usage.output_tokens": sum(
                    each.completion_tokens for each in below.turns.values()
                ),
                "mloc.agent.steps": len(below.turns),
            },
            None if result is not None and not result.failed else "it came to no answer",
        )
        yield from self._of_steps(path, below)

    def _turn(self, agent: Sequence[str], number: int, turn: ModelTurn) -> ReadableSpan:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": self._model,
            "gen_ai.provider.name": self._engine,
            "gen_ai.response.finish_reasons": (turn.finish_reason,),
            "gen_ai.usage.input_tokens": turn.prompt_tokens,
            "gen_ai.usage.output_tokens": turn.completion_tokens,
            "gen_ai.usage.cache_read.input_tokens": turn.cached_tokens,
        }
        if self._content:
            attributes["gen_ai.output.messages"] = turn.text
        return self._span(
            f"chat {self._model}", (*agent, str(number)), agent, _span_of(turn), attributes
        )

    def _call(
        self, agent: Sequence[str], number: int, call: str, result: CallResult, arguments: str
    ) -> ReadableSpan:
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": result.tool,
            "gen_ai.tool.call.id": call,
            "gen_ai.tool.type": "function",
        }
        if self._content:
            attributes |= {
                "gen_ai.tool.call.arguments": arguments,
                "gen_ai.tool.call.result": result.output,
            }
        return self._span(
            f"execute_tool {result.tool}",
            (*agent, str(number), call),
            agent,
            _span_of(result),
            attributes,
            "the tool failed" if result.failed else None,
        )

    def _span(
        self,
        name: str,
        path: Sequence[str],
        parent: Sequence[str],
        seconds: tuple[float, float],
        attributes: Mapping[str, Any],
        error: str | None = None,
    ) -> ReadableSpan:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.status import Status, StatusCode

        failed = {"error.type": "error"} if error is not None else {}
        return ReadableSpan(
            name,
            context=self._context(path),
            parent=self._context(parent),
            resource=_resource(),
            attributes={**attributes, **failed},
            kind=SpanKind.INTERNAL,
            status=Status(StatusCode.UNSET if error is None else StatusCode.ERROR, error),
            start_time=round(seconds[0] * _NANOSECONDS),
            end_time=round(seconds[1] * _NANOSECONDS),
            instrumentation_scope=_scope(),
        )

    def _context(self, path: Sequence[str]) -> Any:
        from opentelemetry.trace import SpanContext, TraceFlags

        span = _number("/".join((self._task_id, *path)), 8)
        flags = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(_number(self._task_id, 16), span, is_remote=False, trace_flags=flags)

    def _write(self) -> None:
        if not self._spans:
            return
        spans, self._spans = self._spans, []
        self._number += 1
        name = f"traces/{self._shard}-{self._number:04d}-{secrets.token_hex(4)}.jsonl"
        self._save(name, otlp_json(spans))


def otlp_json(spans: Sequence[ReadableSpan]) -> bytes:
    """Returns spans as one request in OTLP's JSON form, with its line end."""
    from google.protobuf.json_format import MessageToDict
    from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

    request = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource in request.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                # protobuf's JSON has bytes in base64, where OTLP wants hexadecimal digits.
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = b64decode(span[key]).hex()
    return json.dumps(request, ensure_ascii=False).encode() + b"\n"


def _processor() -> Any | None:
    """Returns what sends spans to a collector; None where the environment names none."""
    if not any(os.environ.get(each) for each in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def _resource() -> Any:
    from opentelemetry.sdk.resources import Resource

    return Resource({"service.name": os.environ.get("OTEL_SERVICE_NAME", "mloc")}, SCHEMA_URL)


def _scope() -> Any:
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    return InstrumentationScope("mloc", __version__, SCHEMA_URL)


def _span_of(entry: ModelTurn | CallResult) -> tuple[float, float]:
    return entry.ended_at - entry.seconds, entry.ended_at


def _arguments(steps: Steps, turn: int, call: str) -> str:
    return next((each.arguments for each in _functions(steps, turn, call)), "")


def _tool_of(steps: Steps, turn: int, call: str) -> str:
    return next((each.name for each in _functions(steps, turn, call)), "agent")


def _functions(steps: Steps, turn: int, call: str) -> Iterator[FunctionCall]:
    said = steps.turns.get(turn)
    calls = () if said is None else said.tool_calls
    return (each.function for each in calls if each.id == call)


def _number(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest())
