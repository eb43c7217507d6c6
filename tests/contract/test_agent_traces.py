"""Traces of agents, read as OpenTelemetry reads them: from files, and by a receiver of OTLP."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mloc_dagster.executors import ModelCache
from mloc_dagster.results import Folder, TaskRecord, write_record
from mloc_dagster.schema import find_task_type
from tests.contract.test_agent_spend import Task, cache, interrupt, rows_of
from tests.contract.test_agents import ANSWER, CALL, Tools, spec, tools

__all__ = ["cache", "tools"]

SUBMITTED = datetime.now(UTC) - timedelta(minutes=1)
FAIL = {"tool_calls": [{"name": "fail"}]}
WAIT = {"tool_calls": [{"name": "wait"}]}


class Receiver(BaseHTTPRequestHandler):
    """Takes what OTLP's exporter sends over HTTP."""

    received: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        """Reads a request."""
        assert self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ExportTraceServiceRequest]]:
    """A receiver that the environment names, and what it got."""
    Receiver.received = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    port = server.server_address[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    yield Receiver.received
    server.shutdown()
    thread.join()
    server.server_close()


def finished(task: Task) -> Folder:
    """Does what the last steps of a run do with a task."""
    record = TaskRecord(
        task_id="t",
        workflow_id="t",
        run_id="r",
        template={},
        template_name="demo",
        node="ask",
        task_type="agent",
        spec={},
        submitted_at=SUBMITTED,
        mloc_version="1",
    )
    write_record(task.folder, record)
    task.summary()
    write(task)
    return task.folder


def write(task: Task) -> None:
    report: Any = find_task_type("agent").report
    report(task.spec).write_files(task.folder, ())


def in_files(folder: Folder) -> list[Any]:
    """Returns the spans of all files, parsed by the types of OTLP."""
    found: list[Any] = []
    for name in folder.list("traces"):
        for line in folder.read_bytes(name).splitlines():
            found += spans_of(parsed(line))
    return found


def parsed(line: bytes) -> ExportTraceServiceRequest:
    request = json.loads(line)
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                # OTLP's JSON has these in hexadecimal digits, protobuf's in base64.
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = b64encode(bytes.fromhex(span[key])).decode()
    return ParseDict(request, ExportTraceServiceRequest())


def spans_of(request: ExportTraceServiceRequest) -> list[Any]:
    return [
        span
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def attributes(span: Any) -> dict[str, Any]:
    return {
        each.key: getattr(each.value, str(each.value.WhichOneof("value")))
        for each in span.attributes
    }


def tree(spans: list[Any]) -> dict[str, list[str]]:
    """Returns the names of the spans below each, sorted; the root is below the empty name."""
    names = {span.span_id: span.name for span in spans}
    found: dict[str, list[str]] = {}
    for span in spans:
        parent = names[span.parent_span_id] if span.parent_span_id else ""
        found.setdefault(parent, []).append(span.name)
    return {name: sorted(below) for name, below in found.items()}


def test_a_task_is_one_trace(tools: Tools, cache: ModelCache) -> None:
    task = Task(cache, spec([CALL, FAIL, ANSWER], **rows_of("a")))
    task.run()
    spans = in_files(finished(task))
    assert tree(spans) == {
        "": ["task ask"],
        "task ask": ["invoke_agent agent"],
        "invoke_agent agent": [*["chat scripted"] * 3, "execute_tool add", "execute_tool fail"],
    }
    assert len({span.trace_id for span in spans}) == 1
    by_name = {span.name: span for span in spans}
    root, row = by_name["task ask"], by_name["invoke_agent agent"]
    assert root.start_time_unix_nano <= row.start_time_unix_nano <= row.end_time_unix_nano
    assert row.end_time_unix_nano <= root.end_time_unix_nano
    told = attributes(root)
    assert (told["mloc.rows"], told["mloc.agent.turns"], told["mloc.agent.failed_calls"]) == (
        *(1, 3), 1
    )  # fmt: skip
    assert attributes(row)["gen_ai.conversation.id"] == "t/0"
    assert attributes(by_name["chat scripted"])["gen_ai.conversation.id"] == "t/0"
    failed = by_name["execute_tool fail"]
    assert (failed.status.code, attributes(failed)["error.type"]) == (2, "_OTHER")
    assert not [name for span in spans for name in attributes(span) if "messages" in name]


def test_it_stays_one_over_attempts(tools: Tools, cache: ModelCache) -> None:
    task = Task(cache, spec([CALL, WAIT, ANSWER], **rows_of("a", "b")))
    interrupt(task, tools)
    task.run(attempt=2)
    folder = finished(task)
    before = {name: folder.read_bytes(name) for name in folder.list("traces")}
    task.run(attempt=3)
    task.summary()
    write(task)
    assert {name: folder.read_bytes(name) for name in folder.list("traces")} == before
    spans = in_files(folder)
    assert tree(spans)[""] == ["task ask"]
    assert tree(spans)["task ask"] == ["invoke_agent agent"] * 2
    assert len({span.span_id for span in spans}) == len(spans)


def test_a_receiver_gets_what_lies_in_the_files(
    tools: Tools, cache: ModelCache, received: list[ExportTraceServiceRequest]
) -> None:
    schema = {"type": "object", "properties": {"sum": {"type": "integer"}}}
    final = {"tool_calls": [{"name": "final_result", "arguments": {"sum": 3}}]}
    agent = {"output_schema": schema, "trace_content": True, "instructions": "Add."}
    task = Task(cache, spec([{**CALL, "reasoning": "I add"}, FAIL, final], agent))
    task.run()
    folder = finished(task)
    write(task)
    kept = {span.span_id: span for span in in_files(folder)}
    sent = [span for request in received for span in spans_of(request)]
    assert len(sent) == len(kept), "each once"
    assert {span.span_id: span for span in sent} == kept
    (first,) = {each.schema_url for request in received for each in request.resource_spans}
    assert first == "https://opentelemetry.io/schemas/1.38.0"


def test_contents_have_the_form_of_the_conventions(tools: Tools, cache: ModelCache) -> None:
    agent = {"trace_content": True, "instructions": "Add."}
    task = Task(cache, spec([{**CALL, "reasoning": "I add"}, ANSWER], agent, **rows_of("1 + 2?")))
    task.run()
    spans = in_files(finished(task))
    row = attributes(next(each for each in spans if each.name.startswith("invoke_agent")))
    assert json.loads(row["gen_ai.system_instructions"]) == [{"type": "text", "content": "Add."}]
    assert json.loads(row["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "1 + 2?"}]}
    ]
    definitions = json.loads(row["gen_ai.tool.definitions"])
    assert {"type", "name", "description", "parameters"} == set(definitions[0])
    assert "add" in [each["name"] for each in definitions]
    turns = [attributes(each) for each in spans if each.name.startswith("chat")]
    (said,) = json.loads(turns[0]["gen_ai.output.messages"])
    assert (said["role"], said["finish_reason"]) == ("assistant", "tool_call")
    assert [part["type"] for part in said["parts"]] == ["reasoning", "tool_call"]
    assert said["parts"][1]["name"] == "add"
