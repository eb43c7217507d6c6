"""Rows as the answers of a batch in OpenAI's format: one line per request, in input order.

A request's rows follow each other under one `custom_id`. Answers go to one file, requests that
failed to another. Ids derive from the task and the row: writing twice gives the same bytes.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from typing import IO, Any

import msgspec

from mloc_dagster.planning import Plan
from mloc_dagster.results.rows import BASE64, SERVER_FAULT, OutputRow, TokenLogprob

OK = 200
BAD_REQUEST = 400
SERVER_ERROR = 500


class BatchFiles:
    """Writes the answers of a task's requests.

    Args:
        output: Takes a line for each request that has its answer.
        errors: Takes a line for each request that has none.
        plan: The task's plan.
        model: What answered.
        created: When the task was submitted.
    """

    def __init__(
        self, output: IO[bytes], errors: IO[bytes], plan: Plan, model: str, created: datetime | None
    ) -> None:
        self._output = output
        self._errors = errors
        self._task_id = plan.task_id
        self._model = model
        self._created = 0 if created is None else int(created.timestamp())
        self._encode = msgspec.json.Encoder().encode
        self.answered = 0
        self.failed = 0

    def watch(self, rows: Iterable[OutputRow]) -> Iterator[OutputRow]:
        """Passes rows on, in order of index, and writes each request as its last row passes."""
        for _, group in groupby(rows, key=_request_of):
            request = list(group)
            self.write(request)
            yield from request

    def write(self, rows: Sequence[OutputRow]) -> None:
        """Writes the line of one request, given all of its rows."""
        failed = next((row for row in rows if row.error is not None), None)
        if failed is not None:
            self.failed += 1
            self._errors.write(self._encode(self._line(rows[0], *_refusal(failed))) + b"\n")
            return
        self.answered += 1
        self._output.write(self._encode(self._line(rows[0], OK, self._body(rows))) + b"\n")

    def _line(self, row: OutputRow, status: int, body: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": f"batch_req_{self._id(row, 'line')}",
            "custom_id": custom_id_of(row),
            "response": {
                "status_code": status,
                "request_id": f"req_{self._id(row, 'request')}",
                "body": body,
            },
            "error": None,  # for requests without any response, of which there are none here
        }

    def _body(self, rows: Sequence[OutputRow]) -> dict[str, Any]:
        first = rows[0]
        if first.embedding is not None:
            return {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": place, "embedding": _vector(row)}
                    for place, row in enumerate(rows)
                ],
                "model": self._model,
                "usage": {
                    "prompt_tokens": sum(row.prompt_tokens for row in rows),
                    "total_tokens": sum(row.prompt_tokens for row in rows),
                },
            }
        chat = not isinstance(first.prompt, str)
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self._id(first, 'body')}",
            "object": "chat.completion" if chat else "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {"index": place, **_choice(*answer, chat=chat)}
                for place, answer in enumerate(each for row in rows for each in _answers(row))
            ],
            "usage": _usage(rows),
        }

    def _id(self, row: OutputRow, what: str) -> str:
        return sha256(f"{self._task_id}:{row.index}:{what}".encode()).hexdigest()[:32]


def whole_requests(rows: Iterable[OutputRow], total: int) -> Iterator[list[OutputRow]]:
    """Yields the requests of a stopped task of which every row is there.

    Rows do not tell how many a request has. So one counts as whole if its neighbours' rows are
    there, too.

    Args:
        rows: Those that are there, in order of index.
        total: How many the task has.
    """
    before, waiting = -1, list[OutputRow]()
    for _, group in groupby(rows, key=_request_of):
        request = list(group)
        first, last = request[0].index, request[-1].index
        follows = first == before + 1
        if waiting and follows:
            yield waiting
        waiting = request if follows and last - first + 1 == len(request) else []
        before = last
    if waiting and before + 1 == total:
        yield waiting


def _refusal(failed: OutputRow) -> tuple[int, dict[str, Any]]:
    """Returns the status and the body of a request that failed for a row's error."""
    at_server = failed.fault == SERVER_FAULT
    kind = "server_error" if at_server else "invalid_request_error"
    error = {"message": failed.error, "type": kind, "param": None, "code": None}
    return (SERVER_ERROR if at_server else BAD_REQUEST), {"error": error}


def _vector(row: OutputRow) -> list[float] | str:
    numbers = row.embedding or []
    if row.encoding != BASE64:
        return numbers
    return b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def custom_id_of(row: OutputRow) -> str:
    """Returns what the sender calls a row; `row-<index>` where it has no name."""
    return f"row-{row.index}" if row.custom_id is None else row.custom_id


def _request_of(row: OutputRow) -> tuple[bool, str | int]:
    return (False, row.index) if row.custom_id is None else (True, row.custom_id)


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
