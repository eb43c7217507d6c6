"""OpenTelemetry spans: in OTLP's JSON form, and on their way to a collector.

They are kept in files anyway, as the collector's receiver `otlpjsonfile` reads them: so they are
written here, and OpenTelemetry's SDK is needed only where a collector is named.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from mloc_dagster import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

SCHEMA_URL = "https://opentelemetry.io/schemas/1.38.0"
"""The version of the conventions that names of attributes follow."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NANOSECONDS = 1_000_000_000
_INTERNAL, _CLIENT = 1, 3  # SpanKind of OTLP, which counts from another number than the SDK
_ERROR = 2
_PARENT_IS_HERE = 0x100
"""The flags of a span whose parent is known to be of the same process, or that is a root."""

Value = bool | int | float | str | Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time.

    Attributes:
        name: What it is called.
        trace: Names its trace.
        path: Names it in there; its parent's is shorter. The root's is empty.
        parent: The path of the span around it; None for a root.
        start_s: When it began, in seconds since 1970.
        end_s: When it was over.
        attributes: What is told of it; a value of None is left out.
        error: What went wrong.
        remote: Whether it is a request to another process.
    """

    name: str
    trace: str
    path: tuple[str, ...] = ()
    parent: tuple[str, ...] | None = None
    start_s: float
    end_s: float
    attributes: Mapping[str, Value | None]
    error: str | None = None
    remote: bool = False

    @property
    def times(self) -> tuple[int, int]:
        """Both times, in nanoseconds."""
        return round(self.start_s * _NANOSECONDS), round(self.end_s * _NANOSECONDS)


def otlp_json(spans: Iterable[Span]) -> bytes:
    """Returns spans as one request in OTLP's JSON form, with its line end."""
    request = {
        "resourceSpans": [
            {
                "resource": {"attributes": _attributes({"service.name": _service()})},
                "scopeSpans": [
                    {
                        "scope": {"name": "mloc", "version": __version__},
                        "spans": list(map(_span, spans)),
                        "schemaUrl": SCHEMA_URL,
                    }
                ],
                "schemaUrl": SCHEMA_URL,
            }
        ]
    }
    return msgspec.json.encode(request) + b"\n"


def _span(span: Span) -> dict[str, object]:
    start, end = span.times
    parent = {} if span.parent is None else {"parentSpanId": _hex(_id(span, span.parent), 8)}
    failed = {} if span.error is None else {"code": _ERROR, "message": span.error}
    return {
        "traceId": _hex(_trace_id(span.trace), 16),
        "spanId": _hex(_id(span, span.path), 8),
        **parent,
        "flags": _PARENT_IS_HERE,
        "name": span.name,
        "kind": _CLIENT if span.remote else _INTERNAL,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(end),
        "attributes": _attributes(span.attributes),
        "status": failed,
    }


def _attributes(values: Mapping[str, Value | None]) -> list[object]:
    return [
        {"key": name, "value": _value(value)} for name, value in values.items() if value is not None
    ]


def _value(value: Value) -> dict[str, object]:
    match value:
        case bool():
            return {"boolValue": value}
        case int():
            return {"intValue": str(value)}  # JSON's numbers have fewer digits
        case float():
            return {"doubleValue": value}
        case str():
            return {"stringValue": value}
        case _:
            return {"arrayValue": {"values": list(map(_value, value))}}


class Collector:
    """Sends spans where the environment says; nowhere, where it names no collector."""

    def __init__(self) -> None:
        self._processor: Any = _processor()

    def send(self, spans: Iterable[Span]) -> None:
        """Hands spans on; they are sent in a thread of its own, many at a time."""
        if self._processor is not None:
            for each in spans:
                self._processor.on_end(readable(each))

    def close(self) -> None:
        """Sends what waits."""
        if self._processor is not None:
            self._processor.shutdown()


def _processor() -> object:
    if not any(os.environ.get(each) for each in _ENDPOINTS):
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return BatchSpanProcessor(OTLPSpanExporter())


def readable(span: Span) -> ReadableSpan:
    """Returns a span as OpenTelemetry's SDK has it."""
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode

    def context(path: tuple[str, ...]) -> SpanContext:
        flags = TraceFlags(TraceFlags.SAMPLED)
        return SpanContext(
            _trace_id(span.trace), _id(span, path), is_remote=False, trace_flags=flags
        )

    start, end = span.times
    resource, scope = _source(_service())
    failed = Status(StatusCode.ERROR, span.error)
    return ReadableSpan(
        span.name,
        context=context(span.path),
        parent=None if span.parent is None else context(span.parent),
        resource=resource,
        attributes={name: each for name, each in span.attributes.items() if each is not None},
        kind=SpanKind.CLIENT if span.remote else SpanKind.INTERNAL,
        status=Status(StatusCode.UNSET) if span.error is None else failed,
        start_time=start,
        end_time=end,
        instrumentation_scope=scope,
    )


@cache
def _source(service: str) -> tuple[Any, Any]:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    resource = Resource({"service.name": service}, SCHEMA_URL)
    return resource, InstrumentationScope("mloc", __version__, SCHEMA_URL)


def _service() -> str:
    return os.environ.get("OTEL_SERVICE_NAME", "mloc")


def _id(span: Span, path: tuple[str, ...]) -> int:
    return _number("/".join((span.trace, *path)), 8)


@cache
def _trace_id(trace: str) -> int:
    return _number(trace, 16)


def _number(text: str, size: int) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=size).digest())


def _hex(number: int, size: int) -> str:
    return f"{number:0{2 * size}x}"
