"""Rows as the answers of a batch in OpenAI's format: one line per request, in input order.

A request's rows follow each other under one `custom_id`. Answers go to one file, requests that
failed to another. Ids derive from the task and the row: writing twice gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from itertools import groupby
from typing import IO, Any

import msgspec

from mloc_dagster.planning import Plan
from mloc_dagster.results.openai_answer import OK, answer_body, refusal_of
from mloc_dagster.results.rows import OutputRow


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
            self._errors.write(self._encode(self._line(rows[0], *refusal_of(failed))) + b"\n")
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
        return answer_body(
            rows, model=self._model, created=self._created, name=self._id(rows[0], "body")
        )

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


def custom_id_of(row: OutputRow) -> str:
    """Returns what the sender calls a row; `row-<index>` where it has no name."""
    return f"row-{row.index}" if row.custom_id is None else row.custom_id


def _request_of(row: OutputRow) -> tuple[bool, str | int]:
    return (False, row.index) if row.custom_id is None else (True, row.custom_id)
