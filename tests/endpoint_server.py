"""A small endpoint with OpenAI's API over real HTTP, which fails when it is told to.

What it answers are objects of the `openai` package: nothing that a hosted API could not send.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.ports import free_port

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


@dataclass(slots=True)
class Failure:
    """What is answered instead of an answer.

    Attributes:
        status: Its status.
        headers: Its headers.
        message: What it says; a text instead of OpenAI's error object with `plain`.
        code: Of OpenAI's error object.
        hang: Wait for that many seconds first.
        plain: The body is just the text.
    """

    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "out of order"
    code: str | None = None
    hang: float = 0.0
    plain: bool = False


def say(body: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a message that repeats the last one."""
    return {"content": str(body["messages"][-1]["content"])}


@dataclass(slots=True)
class FakeEndpoint:
    """What it was asked, and what it answers.

    Attributes:
        models: Cards of `/v1/models`; None has no such list.
        key: The key that it wants.
        failures: Answers to come, one a request; None answers it.
        judge: Takes a body; returns a failure for it, or None.
        message: Takes a chat's body; returns the answer's message.
        slow_s: Seconds that each answer takes.
        usage: Of each answer.
        bodies: The requests' bodies, in the order in which they came.
        headers: Their headers.
        open: Requests in flight.
        most_open: How many of these there were at most.
        aborted: Requests whose sender left.
    """

    url: str = ""
    models: list[dict[str, Any]] | None = field(
        default_factory=lambda: [{"id": "parrot", "object": "model", "owned_by": "us"}]
    )
    key: str | None = None
    failures: deque[Failure | None] = field(default_factory=deque)
    judge: Callable[[Mapping[str, Any]], Failure | None] = lambda body: None
    message: Callable[[Mapping[str, Any]], dict[str, Any]] = say
    slow_s: float = 0.0
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    open: int = 0
    most_open: int = 0
    aborted: int = 0

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/{path:path}", self._answer, methods=["POST"]),
            ]
        )

    async def _models(self, request: Request) -> Response:
        if (refusal := self._refused(request)) is not None:
            return refusal
        if self.models is None:
            return Response("no such thing", 404)
        return JSONResponse({"object": "list", "data": self.models})

    def _refused(self, request: Request) -> Response | None:
        given = request.headers.get("authorization")
        if self.key is None or given == f"Bearer {self.key}":
            return None
        return _failed(Failure(401, message=f"Incorrect API key provided: {given}"))

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.bodies.append(body)
        self.paths.append(request.url.path)
        self.headers.append(dict(request.headers))
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            if (refusal := self._refused(request)) is not None:
                return refusal
            failure = self.failures.popleft() if self.failures else None
            failure = failure or self.judge(body)
            if failure is not None:
                await self._wait(request, failure.hang)
                return _failed(failure)
            await self._wait(request, self.slow_s)
            return self._answered(request.url.path, body)
        finally:
            self.open -= 1

    async def _wait(self, request: Request, seconds: float) -> None:
        for _ in range(int(seconds * 50)):
            if await request.is_disconnected():
                self.aborted += 1
                return
            await asyncio.sleep(0.02)

    def _answered(self, path: str, body: Mapping[str, Any]) -> Response:
        if path.endswith("/chat/completions"):
            if body.get("stream"):
                return StreamingResponse(self._chunks(body), media_type="text/event-stream")
            return JSONResponse(self._chat(body))
        if path.endswith("/completions"):
            return JSONResponse(self._completion(body))
        vector = [3.0, 4.0, 0.0][: body.get("dimensions") or 3]
        found = {
            "object": "list",
            "model": "parrot",
            "data": [{"object": "embedding", "index": 0, "embedding": vector}],
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        }
        CreateEmbeddingResponse.model_validate(found)
        return JSONResponse(found)

    def _chat(self, body: Mapping[str, Any]) -> dict[str, Any]:
        message = {"role": "assistant", **self.message(body)}
        reason = message.pop("finish_reason", "tool_calls" if message.get("tool_calls") else "stop")
        logprobs = {"content": _probabilities(body)} if body.get("logprobs") else None
        found = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "system_fingerprint": "fp_1",
            "choices": [
                {"index": n, "finish_reason": reason, "message": message, "logprobs": logprobs}
                for n in range(body.get("n", 1))
            ],
            **({} if self.usage is None else {"usage": self.usage}),
        }
        ChatCompletion.model_validate(found)
        return found

    def _completion(self, body: Mapping[str, Any]) -> dict[str, Any]:
        found = {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 1,
            "model": body["model"],
            "choices": [
                {"index": 0, "finish_reason": "length", "text": body["prompt"], "logprobs": None}
            ],
            "usage": self.usage,
        }
        Completion.model_validate(found)
        return found

    async def _chunks(self, body: Mapping[str, Any]) -> AsyncIterator[str]:
        text = str(self.message(body)["content"])
        base = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "parrot"}
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        deltas = [{"role": "assistant", "content": ""}, *({"content": each} for each in pieces), {}]
        for place, delta in enumerate(deltas):
            ended = "stop" if place == len(deltas) - 1 else None
            yield _event({**base, "choices": [_choice(delta, ended)], "usage": None})
        yield _event({**base, "choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"


def _choice(delta: Mapping[str, Any], ended: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": ended}


def _event(chunk: dict[str, Any]) -> str:
    ChatCompletionChunk.model_validate(chunk)
    return f"data: {json.dumps(chunk)}\n\n"


def _probabilities(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    tops = [("b", -2.0), ("a", -0.5), ("c", -3.0)][: body["top_logprobs"]]
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in tops]
    return [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": top}] * 7


def _failed(failure: Failure) -> Response:
    if failure.plain:
        return Response(failure.message, failure.status, dict(failure.headers))
    error = {"message": failure.message, "type": "x", "param": None, "code": failure.code}
    return JSONResponse({"error": error}, failure.status, dict(failure.headers))


@contextmanager
def endpoint() -> Iterator[FakeEndpoint]:
    """A running one."""
    fake = FakeEndpoint()
    port = free_port()
    config = uvicorn.Config(fake.app, host="127.0.0.1", port=port, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    ready = threading.Event()
    startup = server.startup

    async def started(*arguments: Any, **options: Any) -> None:
        await startup(*arguments, **options)
        ready.set()

    server.startup = started  # type: ignore[method-assign]
    thread.start()
    assert ready.wait(60)
    fake.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield fake
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
