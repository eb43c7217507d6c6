"""The rows of one request as OpenAI's API answers it: whole, in chunks, or with what is wrong."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mloc_dagster.results.rows import (
    BASE64,
    BUDGET_FAULT,
    SERVER_FAULT,
    OutputRow,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

OK = 200
BAD_REQUEST = 400
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500


def answer_body(
    rows: Sequence[OutputRow], *, model: str, created: int, name: str
) -> dict[str, Any]:
    """Returns the body of an answer.

    Args:
        rows: Of one request, each with its answer.
        model: What answered.
        created: When, in seconds since 1970.
        name: What its id ends with.
    """
    first = rows[0]
    if first.embedding is not None:
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": place, "embedding": _vector(row)}
                for place, row in enumerate(rows)
            ],
            "model": model,
            "usage": {
                "prompt_tokens": sum(row.prompt_tokens for row in rows),
                "total_tokens": sum(row.prompt_tokens for row in rows),
            },
        }
    chat = not isinstance(first.prompt, str)
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": created,
        "model": model,
        "choices": [
            {"index": place, **_choice(answer, chat=chat)}
            for place, answer in enumerate(each for row in rows for each in _answers(row))
        ],
        "usage": _usage(rows),
    }


@dataclass(frozen=True, slots=True)
class AnswerChunks:
    """Builds the chunks of an answer that is sent as it is generated.

    Attributes:
        chat: Whether a chat is answered, or a text is completed.
        model: What answers.
        created: When, in seconds since 1970.
        name: What the answer's id ends with.
    """

    chat: bool
    model: str
    created: int
    name: str

    def begin(self, choices: int) -> Iterator[dict[str, Any]]:
        """Yields a chunk for each answer of a chat, which says who speaks."""
        for index in range(choices if self.chat else 0):
            yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def text(self, choice: int, text: str) -> dict[str, Any]:
        """Returns the chunk with new text of an answer."""
        return self._chunk(choice, {"delta": {"content": text}} if self.chat else {"text": text})

    def reasoning(self, choice: int, text: str) -> dict[str, Any]:
        """Returns the chunk with what is newly thought before an answer."""
        return self._chunk(choice, {"delta": {"reasoning": text}})

    def tool_call(self, choice: int, piece: ToolCallDelta) -> dict[str, Any]:
        """Returns the chunk with a piece of a call: its first says what is called."""
        if piece.name is None:
            function = {"arguments": piece.arguments}
            delta: dict[str, Any] = {"index": piece.index, "function": function}
        else:
            function = {"name": piece.name, "arguments": piece.arguments}
            delta = {
                "index": piece.index,
                "id": piece.id,
                "type": "function",
                "function": function,
            }
        return self._chunk(choice, {"delta": {"tool_calls": [delta]}})

    def end(self, rows: Sequence[OutputRow]) -> Iterator[dict[str, Any]]:
        """Yields a chunk for each answer, which says why it ended; with its log probabilities."""
        for index, answer in enumerate(each for row in rows for each in _answers(row)):
            whole = _choice(answer, chat=self.chat)
            said: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
            kept = {name: whole[name] for name in ("logprobs", "finish_reason")}
            yield self._chunk(index, {**said, **kept})

    def usage(self, rows: Sequence[OutputRow]) -> dict[str, Any]:
        """Returns the chunk that counts tokens, for who has asked for it."""
        return {**self._frame(), "choices": [], "usage": _usage(rows)}

    def _chunk(self, index: int, said: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "finish_reason": None, "logprobs": None, **said}
        return {**self._frame(), "choices": [choice]}

    def _frame(self) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}",
            "object": "chat.completion.chunk" if self.chat else "text_completion",
            "created": self.created,
            "model": self.model,
        }


def refusal_of(failed: OutputRow) -> tuple[int, dict[str, Any]]:
    """Returns the status and the body of a request that failed for a row's error."""
    if failed.fault == BUDGET_FAULT:
        spent = {"message": failed.error, "type": "insufficient_quota", "param": None, "code": None}
        return TOO_MANY_REQUESTS, {"error": spent}
    at_server = failed.fault == SERVER_FAULT
    kind = "server_error" if at_server else "invalid_request_error"
    error = {"message": failed.error, "type": kind, "param": None, "code": None}
    return (SERVER_ERROR if at_server else BAD_REQUEST), {"error": error}


def _vector(row: OutputRow) -> list[float] | str:
    numbers = row.embedding or []
    if row.encoding != BASE64:
        return numbers
    return b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


class _Answer(NamedTuple):
    text: str
    finish_reason: str
    logprobs: list[TokenLogprob] | None
    tool_calls: list[ToolCall]
    reasoning: str | None


def _answers(row: OutputRow) -> Iterator[_Answer]:
    """Yields each answer of a row."""
    for place, text in enumerate(row.outputs or [row.output]):
        calls, reasoning = row.tool_calls, row.reasoning
        if row.outputs:
            calls = row.all_tool_calls[place] if row.all_tool_calls else None
            reasoning = row.all_reasoning[place] if row.all_reasoning else None
        yield _Answer(
            text,
            row.finish_reasons[place] if row.finish_reasons else row.finish_reason,
            row.logprobs[place] if row.logprobs else None,
            calls or [],
            reasoning,
        )


def _choice(answer: _Answer, *, chat: bool) -> dict[str, Any]:
    logprobs = answer.logprobs
    if not chat:
        return {
            "text": answer.text,
            "logprobs": None if logprobs is None else _completion_logprobs(logprobs),
            "finish_reason": answer.finish_reason,
        }
    return {
        "message": _message(answer),
        "logprobs": None if logprobs is None else {"content": _chat_logprobs(logprobs)},
        "finish_reason": answer.finish_reason,
    }


def _message(answer: _Answer) -> dict[str, Any]:
    calls = [_call(each) for each in answer.tool_calls]
    content = answer.text or None if calls else answer.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    if answer.reasoning is not None:
        message["reasoning"] = answer.reasoning  # as vLLM's server calls it; the API has no name
    return message


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": call.type, "function": function}


def _chat_logprobs(tokens: list[TokenLogprob]) -> list[dict[str, Any]]:
    return [
        {
            **_token(each.token, each.logprob),
            "top_logprobs": [_token(token, logprob) for token, logprob in each.top],
        }
        for each in tokens
    ]


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode(errors="replace"))}


def _completion_logprobs(tokens: list[TokenLogprob]) -> dict[str, Any]:
    offsets: list[int] = []
    at = 0
    for each in tokens:
        offsets.append(at)
        at += len(each.token)
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [dict(each.top) for each in tokens],
        "text_offset": offsets,
    }


def _usage(rows: Sequence[OutputRow]) -> dict[str, Any]:
    read = sum(row.prompt_tokens for row in rows)
    written = sum(row.completion_tokens for row in rows)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(row.cached_tokens for row in rows)},
        "completion_tokens_details": {
            "reasoning_tokens": sum(row.reasoning_tokens for row in rows)
        },
    }
