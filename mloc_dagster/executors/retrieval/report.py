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
UNJUDGED = "unjudged"
UNREAD_VERDICTS = "unread_verdicts"


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
        if ABSTENTIONS in self._counts:
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
        """Returns how often what the task type counts has happened."""
        return self._counts


class JudgeReport(RetrievalReport):
    """Counts beside what was found the answers that have no verdict, or none that can be read.

    Args:
        spec: The task.
    """

    def __init__(self, spec: RowSpec) -> None:
        super().__init__(spec)
        self._counts = {UNJUDGED: 0, UNREAD_VERDICTS: 0}

    def add(self, row: OutputRow) -> None:
        """Counts a row."""
        super().add(row)
        judgement = row.judgement
        self._counts[UNJUDGED] += row.error is None and judgement is None
        self._counts[UNREAD_VERDICTS] += judgement is not None and judgement.error is not None


def _point(passage: Passage) -> JsonValue:
    payload: JsonValue = passage.payload
    if payload is None:
        payload = {"text": passage.text}
    return {"id": passage.id, "score": passage.score or 0.0, "payload": payload}
