"""What tasks of retrieval tell of their rows: what was found, in the form of earlier versions."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from mloc_dagster.results import OutputRow, Passage, TaskReport, prompt_text
from mloc_dagster.schema import RowSpec, Usage

_MOST_QUERIES = 1000
"""Rows under `queries` in `responses.json`; the items say the same of all rows."""

ABSTENTIONS = "abstentions"
CITATION_ERRORS = "citation_errors"


class RetrievalReport(TaskReport):
    """Counts what was found, and of answers those that abstain or cite what they should not.

    Args:
        spec: The task.
    """

    def __init__(self, spec: RowSpec) -> None:
        self._rows = self._found = 0
        self._queries: list[JsonValue] = []
        answers = spec.task_type == "answer"
        self._counts: dict[str, int] = {ABSTENTIONS: 0, CITATION_ERRORS: 0} if answers else {}

    def add(self, row: OutputRow) -> None:
        """Counts a row."""
        found = row.retrieved or []
        self._rows += 1
        self._found += len(found)
        if self._counts:
            self._counts[ABSTENTIONS] += bool(row.abstained)
            self._counts[CITATION_ERRORS] += row.citation_error is not None
        if len(self._queries) < _MOST_QUERIES:
            query = prompt_text(row.prompt)
            items: list[JsonValue] = [_point(each) for each in found]
            self._queries.append({"index": row.index, "query": query, "items": items})

    def result(self, usage: Usage) -> Mapping[str, JsonValue]:
        """Returns the queries, and the usage with how many there were."""
        counted = {"num_queries": self._rows, "total_results": self._found}
        return {"usage": {**usage.model_dump(), **counted}, "queries": self._queries}

    def counts(self) -> Mapping[str, int]:
        """Returns how many answers abstain, and how many cite what they should not."""
        return self._counts


def _point(passage: Passage) -> JsonValue:
    payload: JsonValue = passage.payload
    if payload is None:
        payload = {"text": passage.text}
    return {"id": passage.id, "score": passage.score or 0.0, "payload": payload}
