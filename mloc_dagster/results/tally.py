"""Counting a task's rows in one pass: what is missing, and what the summary says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.planning import Plan, shard_key
from mloc_dagster.results.rows import BUDGET_FAULT, EXCUSED_FAULTS, OutputRow, Prompt
from mloc_dagster.results.summary import LatencyCounter, PreviewRow, UsageCounter
from mloc_dagster.results.tool_calls import answer_text

_PREVIEW_ROWS = 5
_PREVIEW_CHARACTERS = 300
_NAMED_SHARDS = 5
_NAMED_INDEXES = 3
_MAX_WORKERS = 1000
_ANY_SHARD = -1


class Tally:
    """Counts rows as they pass by, in order of index.

    Args:
        plan: What should be there.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._missing: dict[int, _Missing] = {}
        self.errors = self.excused_errors = self.unaffordable = 0
        self.empty_outputs = 0
        self.usage = UsageCounter()
        self.finish_reasons: Counter[str] = Counter()
        self.engines: set[str] = set()
        self.workers: set[str] = set()
        self.revisions: set[str] = set()
        self.latency = LatencyCounter()
        self.preview: list[PreviewRow] = []
        self.first_errors: list[PreviewRow] = []

    def watch(self, rows: Iterator[OutputRow]) -> Iterator[OutputRow]:
        """Passes rows on and counts them.

        Raises:
            IncompleteResultsError: At the end, if rows are missing or there are too many.
        """
        expected = 0
        for row in rows:
            if row.index != expected:
                self._miss(expected, min(row.index, self._plan.rows))
            expected = row.index + 1
            self._count(row)
            yield row
        self._miss(expected, self._plan.rows)
        self._check(expected)

    def _count(self, row: OutputRow) -> None:
        self.usage.add(row)
        self.finish_reasons[row.finish_reason] += 1
        self.latency.add(row.latency_s)
        self.engines.add(row.engine)
        self.revisions.add(row.revision)
        if len(self.workers) < _MAX_WORKERS:
            self.workers.add(row.worker)
        if self.usage.rows <= _PREVIEW_ROWS:
            self.preview.append(shorten(row))
        if row.error is not None:
            self.errors += 1
            self.excused_errors += row.fault in EXCUSED_FAULTS
            self.unaffordable += row.fault == BUDGET_FAULT
            if len(self.first_errors) < _PREVIEW_ROWS:
                self.first_errors.append(shorten(row))
        elif is_empty(row):
            self.empty_outputs += 1

    def _miss(self, start: int, stop: int) -> None:
        if self._plan.windows:  # a row that is not there cannot say where the plan put it
            if start < stop:
                self._missing.setdefault(_ANY_SHARD, _Missing()).add(start, stop)
            return
        for shard in self._plan.shards:
            first, last = max(start, shard.start), min(stop, shard.stop)
            if first < last:
                self._missing.setdefault(shard.index, _Missing()).add(first, last)

    def _check(self, stop: int) -> None:
        plan = self._plan
        if self._missing:
            total = sum(missing.rows for missing in self._missing.values())
            named = sorted(self._missing.items())
            listed = "; ".join(
                f"{_shard_name(index)} {missing}" for index, missing in named[:_NAMED_SHARDS]
            )
            more = f"; and {len(named) - _NAMED_SHARDS} more" if len(named) > _NAMED_SHARDS else ""
            raise IncompleteResultsError(
                f"task {plan.task_id} has {plan.rows - total} of {plan.rows} rows: {listed}{more}; "
                "resuming the task computes them"
            )
        if stop > plan.rows:
            raise IncompleteResultsError(
                f"task {plan.task_id} has rows up to index {stop - 1}, but its plan has "
                f"{plan.rows} rows: its folder holds the shards of another input"
            )


class _Missing:
    def __init__(self) -> None:
        self.rows = 0
        self.indexes: list[int] = []

    def add(self, start: int, stop: int) -> None:
        self.rows += stop - start
        room = _NAMED_INDEXES - len(self.indexes)
        self.indexes += range(start, min(stop, start + room))

    def __str__(self) -> str:
        named = ", ".join(map(str, self.indexes))
        return f"{self.rows} ({named}{', …' if self.rows > len(self.indexes) else ''})"


def _shard_name(index: int) -> str:
    return "it lacks" if index == _ANY_SHARD else f"shard {shard_key(index)} lacks"


def is_empty(row: OutputRow) -> bool:
    """Tells whether a row without an error says nothing: no text, no vector, no call of a tool."""
    return not (row.output or row.embedding is not None or row.tool_calls)


def shorten(row: OutputRow) -> PreviewRow:
    """Returns a row for people."""
    return PreviewRow(
        index=row.index,
        prompt=short_prompt(row.prompt),
        output=short_text(answer_text(row.output, row.tool_calls)),
        finish_reason=row.finish_reason,
        error=None if row.error is None else short_text(row.error),
        custom_id=row.custom_id,
    )


def short_prompt(prompt: Prompt) -> str:
    """Returns a prompt for people: the last message of a chat, shortened."""
    return short_text(_prompt_text(prompt))


def _prompt_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    if not prompt:
        return ""
    last = prompt[-1]
    content = last.content
    if isinstance(content, str):
        return answer_text(content, last.tool_calls)
    return " ".join(str(part.get("text", part.get("type", ""))) for part in content)


def short_text(text: str) -> str:
    """Returns a text for people, shortened."""
    return text if len(text) <= _PREVIEW_CHARACTERS else text[: _PREVIEW_CHARACTERS - 1] + "…"
