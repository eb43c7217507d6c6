"""The rows of one request as OpenAI's API answers it: whole, in chunks, or with what is wrong."""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.results.rows import BASE64, BUDGET_FAULT, SERVER_FAULT, OutputRow, TokenLogprob

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
            {"index": place, **_choice(*answer, chat=chat)}
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

    def end(self, rows: Sequence[OutputRow]) -> Iterator[dict[str, Any]]:
        """Yields a chunk for each answer, which says why it ended; with its log probabilities."""
        for index, answer in enumerate(each for row in rows for each in _answers(row)):
            whole = _choice(*answer, chat=self.chat)
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


_Answer = tuple[str, str, list[TokenLogprob] | None]


def _answers(row: OutputRow) -> Iterator[_Answer]:
    """Yields text, finish reason and log probabilities of each answer."""
    for place, text in enumerate(row.outputs or [row.output]):
        reason = row.finish_reasons[place] if row.finish_reasons else row.finish_reason
        yield text, reason, row.logprobs[place] if row.logprobs else None


def _choice(
    text: str, finish_reason: str, logprobs: list[TokenLogprob] | None, *, chat: bool
) -> dict[str, Any]:
    if not chat:
        return {
            "text": text,
            "logprobs": None if logprobs is None else _completion_logprobs(logprobs),
            "finish_reason": finish_reason,
        }
    return {
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if logprobs is None else {"content": _chat_logprobs(logprobs)},
        "finish_reason": finish_reason,
    }


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
    }
