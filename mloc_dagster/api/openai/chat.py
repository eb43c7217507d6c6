"""`/v1/chat/completions`, `/v1/completions`, `/v1/embeddings`: answered now by a warm worker.

A request means here what it means in a batch file, and is answered by the same code.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Body, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue, StrictBool
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from mloc_dagster.api.openai.errors import error_text, errors
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State
from mloc_dagster.errors import InputError
from mloc_dagster.fleet import AnswerPiece, ReasoningPiece, RowsPiece, TextPiece
from mloc_dagster.results import SERVER_FAULT, AnswerChunks, OutputRow, answer_body
from mloc_dagster.tasks import call_rows

router = APIRouter(prefix="/v1", tags=["OpenAI"])

_Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]
_CHAT: _Endpoint = "/v1/chat/completions"
_COMPLETIONS: _Endpoint = "/v1/completions"
_EMBEDDINGS: _Endpoint = "/v1/embeddings"
_CLIENT_HAS_LEFT = 499

type Pieces = AsyncGenerator[AnswerPiece | RowsPiece]


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False
    """Whether the last chunk counts tokens."""


class _Asking(BaseModel):
    """What every request has; its other fields are OpenAI's, as in a batch file (docs/batch.md)."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    model: Annotated[str, Field(min_length=1, max_length=500)]
    """A model that ships, a task's id, a library template, or an id of the hub."""


class _Streamable(_Asking):
    stream: bool | None = None
    """Whether text is sent as it is generated, as server-sent events."""

    stream_options: _StreamOptions | None = None


class ChatRequest(_Streamable):
    """A chat that is to be continued."""

    messages: list[dict[str, JsonValue]]
    """The chat so far; calls of tools and what they answered among it."""

    tools: list[JsonValue] | None = None
    """Functions that the model may call: `{"type": "function", "function": {"name": …}}`."""

    tool_choice: str | dict[str, JsonValue] | None = None
    """`auto`, `none`, `required`, or the function that is to be called."""

    parallel_tool_calls: StrictBool | None = None
    """Whether an answer may call several tools."""

    reasoning_effort: str | None = None
    """How hard to think, for models whose chat template reads it; `none` for not at all."""


class CompletionRequest(_Streamable):
    """A text that is to be continued."""

    prompt: str | list[str]
    """The text; several are answered side by side."""


class EmbeddingRequest(_Asking):
    """Texts that are to be embedded."""

    input: str | list[str]
    """The texts."""


@router.post("/chat/completions", responses=errors(404, 413, 429, 500), summary="Answer a chat")
async def chat(api: State, request: Request, wanted: Annotated[ChatRequest, Body()]) -> Response:
    """Answers with a worker that has the model loaded, or loads it."""
    return await _answer(api, request, _CHAT, wanted)


@router.post("/completions", responses=errors(404, 413, 429, 500), summary="Continue a text")
async def complete(
    api: State, request: Request, wanted: Annotated[CompletionRequest, Body()]
) -> Response:
    """Reads the prompt as it is, without the model's chat template."""
    return await _answer(api, request, _COMPLETIONS, wanted)


@router.post("/embeddings", responses=errors(404, 413, 429, 500), summary="Embed texts")
async def embed(
    api: State, request: Request, wanted: Annotated[EmbeddingRequest, Body()]
) -> Response:
    """Makes a vector of each text."""
    return await _answer(api, request, _EMBEDDINGS, wanted)


async def _answer(
    api: ApiState, request: Request, endpoint: _Endpoint, wanted: _Asking
) -> Response:
    body = wanted.model_dump(exclude_unset=True)
    stream = bool(body.pop("stream", False))
    options = body.pop("stream_options", None) or {}
    name = body.pop("model")
    model = await run_in_threadpool(api.calls.model, name, vectors=endpoint == _EMBEDDINGS)
    try:
        rows = call_rows(endpoint, body, model.spec)
    except InputError as error:
        raise Refusal(400, "invalid-request", str(error)) from None
    chunks = AnswerChunks(
        chat=endpoint == _CHAT,
        model=name,
        created=int(time.time()),
        name=uuid.uuid4().hex,
    )
    pieces = api.calls.answer(model, rows, stream=stream)
    if not stream:
        return await _whole(pieces, request, chunks)
    # Whatever can be refused is refused before the answer begins.
    first = await _unless_left(request, _first(pieces))
    if first is None:
        return Response(status_code=_CLIENT_HAS_LEFT)
    if isinstance(first, RowsPiece):
        _check(first.rows)
    choices = len(rows) * (body.get("n") or 1)
    events = _events(first, pieces, chunks, choices, usage=options.get("include_usage", False))
    return EventSourceResponse(events, sep="\n")


async def _whole(pieces: Pieces, request: Request, chunks: AnswerChunks) -> Response:
    """Returns the whole answer."""
    rows = await _unless_left(request, _answered(pieces))
    if rows is None:
        return Response(status_code=_CLIENT_HAS_LEFT)
    _check(rows)
    body = answer_body(rows, model=chunks.model, created=chunks.created, name=chunks.name)
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _unless_left[T](request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Returns what is waited for; None, and it is stopped, as soon as the client has left."""
    done, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((done, left), return_when=asyncio.FIRST_COMPLETED)
        return done.result() if done.done() else None
    finally:
        done.cancel()
        left.cancel()
        await asyncio.gather(done, left, return_exceptions=True)


async def _first(pieces: Pieces) -> AnswerPiece | RowsPiece:
    return await anext(pieces)


async def _answered(pieces: Pieces) -> Sequence[OutputRow]:
    async with aclosing(pieces):
        async for piece in pieces:
            if isinstance(piece, RowsPiece):
                return piece.rows
    raise RuntimeError("an answer without an end")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(
    first: AnswerPiece | RowsPiece,
    pieces: Pieces,
    chunks: AnswerChunks,
    choices: int,
    *,
    usage: bool,
) -> AsyncIterator[ServerSentEvent]:
    for each in chunks.begin(choices):
        yield _event(each)
    piece = first
    async with aclosing(pieces):
        try:
            while not isinstance(piece, RowsPiece):
                chunk = _chunk(piece, chunks)
                if chunk is not None:
                    yield _event(chunk)
                piece = await anext(pieces)
            _check(piece.rows)
        except Refusal as refusal:
            yield ServerSentEvent(error_text(refusal.status, refusal.kind, refusal.detail))
        else:
            for each in chunks.end(piece.rows):
                yield _event(each)
            if usage:
                yield _event(chunks.usage(piece.rows))
    yield ServerSentEvent("[DONE]")


def _chunk(piece: AnswerPiece, chunks: AnswerChunks) -> dict[str, Any] | None:
    """Returns a piece as a chunk; None of what a completion has no place for."""
    if isinstance(piece, TextPiece):
        return chunks.text(piece.choice, piece.text)
    if not chunks.chat:
        return None
    if isinstance(piece, ReasoningPiece):
        return chunks.reasoning(piece.choice, piece.text)
    return chunks.tool_call(piece.choice, piece.delta)


def _event(chunk: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(msgspec.json.encode(chunk).decode())


def _check(rows: Sequence[OutputRow]) -> None:
    for each in rows:
        if each.error is not None:
            at_server = each.fault == SERVER_FAULT
            kind = "engine-failed" if at_server else "invalid-request"
            raise Refusal(500 if at_server else 400, kind, each.error)
