"""`/v1/chat/completions` and its neighbours over the API, answered by workers in this process."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest
from starlette.testclient import TestClient

from mloc_dagster.api import FleetAccess, create_app
from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors import Caller, InputRow, ModelCache, OutputRow, task_executor
from mloc_dagster.fleet import CallServer, FleetEngine, MemoryFleetEngine
from mloc_dagster.results import FunctionCall, ToolCall, ToolCallDelta
from tests.fleet_threads import CPU_QUEUE, info_of
from tests.memory_ledger import MemoryLedger

HELLO = [{"role": "user", "content": "one two  three"}]


class MemoryFleet(FleetAccess):
    """A fleet in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = MemoryFleetEngine()

    def engine(self) -> FleetEngine:
        return self.memory

    @contextmanager
    def worker(self, name: str = "w1", **changes: object) -> Iterator[None]:
        self.memory.register(
            info_of(name, CPU_QUEUE).model_copy(update={"status": "IDLE", **changes})
        )
        with CallServer(self.memory, name, ModelCache(1)):
            yield


@pytest.fixture
def fleet() -> MemoryFleet:
    return MemoryFleet()


@pytest.fixture
def client(fleet: MemoryFleet) -> Iterator[openai.OpenAI]:
    app = create_app(MemoryLedger(), fleet)  # type: ignore[arg-type]
    with TestClient(app, "http://127.0.0.1") as http:
        yield openai.OpenAI(
            base_url="http://127.0.0.1/v1", api_key="any", http_client=http, max_retries=0
        )


def test_a_chat_is_answered(fleet: MemoryFleet, client: openai.OpenAI) -> None:
    with fleet.worker():
        answer = client.chat.completions.create(model="echo", messages=HELLO)
    (choice,) = answer.choices
    assert choice.message.content == "one two  three"
    assert choice.finish_reason == "stop"
    assert answer.model == "echo"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 6


def test_a_chat_is_streamed(fleet: MemoryFleet, client: openai.OpenAI) -> None:
    with fleet.worker():
        chunks = list(
            client.chat.completions.create(
                model="echo",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    first, *_, end, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    said = [each.choices[0].delta.content or "" for each in chunks[:-1]]
    assert "".join(said) == "one two  three"
    assert end.choices[0].finish_reason == "stop"
    assert usage.choices == []
    assert usage.usage is not None
    assert len({each.id for each in chunks}) == 1


TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]


def calls_tools(rows: list[InputRow], spec: object, model: None, caller: Caller) -> list[OutputRow]:
    """Thinks, says something, and calls two tools: one in pieces, one as a whole."""
    answered: list[OutputRow] = []
    for choice, row in enumerate(rows):
        calls = [
            ToolCall("call_1", FunctionCall("lookup", '{"key": "a"}')),
            ToolCall("call_2", FunctionCall("lookup", "{}")),
        ]
        if caller.stream:
            for text in ("I look ", "it up"):
                caller.reasoning(choice, text)
            caller.text(choice, "A moment.")
            caller.tool_call(choice, ToolCallDelta(0, "call_1", "lookup"))
            for text in ('{"key":', ' "a"}'):
                caller.tool_call(choice, ToolCallDelta(0, arguments=text))
            caller.tool_call(choice, ToolCallDelta(1, "call_2", "lookup", "{}"))
        answered.append(
            OutputRow(
                *(row.index, row.prompt, "A moment.", "tool_calls"), tool_calls=calls,
                reasoning="I look it up", completion_tokens=9, reasoning_tokens=4,
            )
        )  # fmt: skip
    return answered


def test_tools_are_called(
    fleet: MemoryFleet, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_executor("echo"), "answer", calls_tools)
    with fleet.worker():
        answer = client.chat.completions.create(model="echo", messages=HELLO, tools=TOOLS)  # type: ignore[call-overload]
    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "A moment.")
    assert [each.function.name for each in choice.message.tool_calls] == ["lookup", "lookup"]
    assert choice.message.reasoning == "I look it up"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 4


def test_calls_and_thoughts_are_streamed(
    fleet: MemoryFleet, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_executor("echo"), "answer", calls_tools)
    thoughts = ""
    with (
        fleet.worker(),
        client.chat.completions.stream(model="echo", messages=HELLO, tools=TOOLS) as stream,  # type: ignore[arg-type]
    ):
        for event in stream:
            if event.type == "chunk" and event.chunk.choices:
                thoughts += getattr(event.chunk.choices[0].delta, "reasoning", "")
        (choice,) = stream.get_final_completion().choices
    assert thoughts == "I look it up"
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "A moment.")
    assert choice.message.tool_calls is not None
    assert [(each.id, each.function.name) for each in choice.message.tool_calls] == [
        ("call_1", "lookup"),
        ("call_2", "lookup"),
    ]
    assert [each.function.arguments for each in choice.message.tool_calls] == ['{"key": "a"}', "{}"]


def test_a_text_is_completed_without_thoughts_and_calls(
    fleet: MemoryFleet, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_executor("echo"), "answer", calls_tools)
    with fleet.worker():
        chunks = list(client.completions.create(model="echo", prompt="a", stream=True))
    assert "".join(each.choices[0].text for each in chunks) == "A moment."


def test_several_texts_are_completed(fleet: MemoryFleet, client: openai.OpenAI) -> None:
    with fleet.worker():
        answer = client.completions.create(model="echo", prompt=["a", "b c"])
        chunks = list(client.completions.create(model="echo", prompt=["a", "b c"], stream=True))
    assert [each.text for each in answer.choices] == ["a", "b c"]
    said = {0: "", 1: ""}
    for each in chunks:
        said[each.choices[0].index] += each.choices[0].text
    assert said == {0: "a", 1: "b c"}


@pytest.mark.parametrize(
    ("wanted", "status", "message"),
    [
        ({"model": "ecko"}, 404, "unknown model 'ecko'; did you mean 'echo'?"),
        ({"model": ""}, 400, "at least 1 character"),
        ({"messages": []}, 400, "'messages' must be a list with at least one message"),
        ({"model": "tiny-chat", "temperature": "hot"}, 400, "temperature"),
        ({"model": "align_tiny"}, 400, "asks what it trains"),
        ({"messages": "hello"}, 400, "valid list"),
        ({"tools": "lookup"}, 400, "valid list"),
        ({"tools": [{"type": "custom"}]}, 400, "tools of type 'custom' are not supported"),
        ({"tool_choice": "requierd"}, 400, "did you mean 'required'"),
        ({"parallel_tool_calls": "no"}, 400, "valid boolean"),
        ({"messages": [{"role": "tool", "content": "5"}]}, 400, "tool_call_id is missing"),
        ({"model": "tiny-chat", "tool_choice": "required"}, 400, "needs tools"),
    ],
)
def test_what_is_wrong_is_told(
    client: openai.OpenAI, wanted: dict[str, object], status: int, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as raised:
        client.chat.completions.create(**{"model": "echo", "messages": HELLO, **wanted})  # type: ignore[call-overload]
    assert raised.value.status_code == status


def test_vectors_need_a_model_of_vectors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="text, no vectors"):
        client.embeddings.create(model="echo", input="a")


def test_without_a_worker_the_caller_may_come_again(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="no worker can answer now") as raised:
        client.chat.completions.create(model="echo", messages=HELLO)
    assert raised.value.status_code == 503
    assert raised.value.response.headers["retry-after"]


def test_a_worker_that_is_lost_is_replaced(
    fleet: MemoryFleet, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mloc_dagster.api.openai.calls._SILENCE_S", 0.1)
    monkeypatch.setattr("mloc_dagster.api.openai.calls._LOOK_S", 0.1)
    fleet.memory.register(info_of("dead", CPU_QUEUE).model_copy(update={"status": "IDLE"}))
    with fleet.worker("lives"):
        answer = client.chat.completions.create(model="echo", messages=HELLO)
    assert answer.choices[0].message.content == "one two  three"


def test_a_call_too_many_is_told_to_wait(
    fleet: MemoryFleet, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()

    def answer(rows: list[InputRow], spec: object, model: None, caller: Caller) -> list[OutputRow]:
        began.set()
        if not may_end.wait(60):
            raise TaskCancelled
        return [OutputRow(each.index, each.prompt, "done") for each in rows]

    monkeypatch.setattr(task_executor("echo"), "answer", answer)
    monkeypatch.setattr(client._client.app.state.api.calls, "most", 1)  # type: ignore[attr-defined]
    with fleet.worker(), ThreadPoolExecutor() as threads:
        first = threads.submit(client.chat.completions.create, model="echo", messages=HELLO)  # type: ignore[call-overload]
        assert began.wait(60)
        with pytest.raises(openai.RateLimitError, match="MLOC_API_MAX_CALLS"):
            client.chat.completions.create(model="echo", messages=HELLO)
        may_end.set()
        assert first.result().choices[0].message.content == "done"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert "tiny-chat" in [each.id for each in client.models.list()]
    assert client.models.retrieve("tiny-chat").owned_by == "mloc"
    assert client.models.retrieve("some/model").owned_by == "some"
    with pytest.raises(openai.NotFoundError, match="did you mean 'tiny-chat'"):
        client.models.retrieve("tiny-chit")


@pytest.mark.parametrize("stream", [False, True])
def test_a_worker_stops_when_the_client_leaves(
    fleet: MemoryFleet, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    began, stopped = threading.Event(), threading.Event()

    def answer(rows: list[InputRow], spec: object, model: None, caller: Caller) -> list[OutputRow]:
        began.set()
        while not caller.cancelled():
            stopped.wait(0.01)
        stopped.set()
        raise TaskCancelled

    monkeypatch.setattr(task_executor("echo"), "answer", answer)
    app = create_app(MemoryLedger(), fleet)  # type: ignore[arg-type]
    body = json.dumps({"model": "echo", "messages": HELLO, "stream": stream}).encode()
    came = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, object]:
        if came:
            return came.pop()
        await asyncio.to_thread(began.wait, 60)
        return {"type": "http.disconnect"}

    async def send(message: object) -> None:
        """Nobody listens."""

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": "/v1/chat/completions", "query_string": b"",
        "headers": headers, "server": ("127.0.0.1", 80), "http_version": "1.1", "scheme": "http",
    }  # fmt: skip
    with fleet.worker():
        asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
        assert stopped.wait(60)
