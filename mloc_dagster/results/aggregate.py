"""From shards to `responses.json` and `summary.json`, in one pass and constant memory."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from itertools import batched
from typing import IO, TYPE_CHECKING, Any

import msgspec
from pydantic import JsonValue, ValidationError

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.planning import Plan
from mloc_dagster.results.part_files import Part, list_parts, read_rows
from mloc_dagster.results.rates import UNPRICED, Rates
from mloc_dagster.results.rows import (
    BUDGET_FAULT,
    EXCUSED_FAULTS,
    Citation,
    Judgement,
    OutputRow,
    Passage,
    ToolCall,
)
from mloc_dagster.results.spans import Span, attempt_spans, covered_s, mean_at_once
from mloc_dagster.results.spend import BudgetReached, Spent, budget_reached, spend_in_parts
from mloc_dagster.results.store import Folder
from mloc_dagster.results.summary import (
    SUMMARY_NAME,
    PreviewRow,
    Scores,
    TaskSummary,
)
from mloc_dagster.results.tally import Tally, is_empty
from mloc_dagster.results.task_report import TaskReport
from mloc_dagster.schema import Limits, RowEvaluation

if TYPE_CHECKING:
    from mloc_dagster.results.columns import TaskColumns

_FIRST_ERROR = 300
"""Characters of the first error: what is to be done comes after it and must be read, too."""


def allowed_errors(rows: int, budget: float, excused: int = 0) -> int:
    """Returns how many rows may fail before the task does.

    Any share above 0 allows at least one row and, of more than one, never all of them; 0 allows
    none. A task of a single row may thus never lose it.

    Args:
        rows: Rows of the task.
        budget: The share that may fail, 0 to 1.
        excused: Rows that failed in an earlier task, whose budget they were charged to, and those
            that the task's budget of tokens, cost or seconds left out: they may all, and the share
            is that of the others.
    """
    return excused + _share(rows - excused, budget)


def _share(rows: int, budget: float) -> int:
    if budget <= 0 or rows <= 0:
        return 0
    # str: 0.29 means 29 %, not the nearest binary fraction, which is less.
    share = math.floor(Fraction(str(budget)) * rows)
    return min(max(share, 1), rows - 1)


def budget_problem(
    errors: int, rows: int, allowed: int, first: tuple[int, str] | None, *, again: str = ""
) -> str:
    """Returns what is said of a task with more errors than it may have, wherever it is said.

    Args:
        errors: Rows that ended with an error.
        rows: Rows of the task.
        allowed: How many of them might have.
        first: Index and text of the first of them.
        again: The command that computes them again; empty where it is said elsewhere.
    """
    named = ""
    if first is not None:
        index, text = first
        text = " ".join(text.split())
        named = f"; the first, row {index}: {text[:_FIRST_ERROR]}{'…' * (len(text) > _FIRST_ERROR)}"
    command = f" (`{again}`)" if again else ""
    return (
        f"{errors:,} of {rows:,} rows ended with an error, and error_budget allows {allowed:,}"
        f"{named}. Compute them again{command}, or run the template with a larger error_budget"
    )


__all__ = ["PreviewRow", "TaskSummary", "aggregate_rows", "allowed_errors", "read_summary"]

RESPONSES_NAME = "responses.json"


_BATCH_ROWS = 8192
"""Rows that are put together at a time; as many as a file of their columns has."""

_SCORED_ROWS = 256
"""Rows that are scored at a time: what is found for them is in memory, with its texts."""


class _Item(msgspec.Struct, omit_defaults=True):
    index: int
    output: str
    finish_reason: str
    error: str | None = None
    outputs: list[str] | None = None
    custom_id: str | None = None
    embedding: list[float] | None = None
    finish_reasons: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    all_tool_calls: list[list[ToolCall]] | None = None
    all_reasoning: list[str | None] | None = None
    steps: int = 0
    stop: str = ""
    failed_calls: int = 0
    chunks: list[Passage] | None = None
    retrieved: list[Passage] | None = None
    citations: list[Citation] | None = None
    abstained: bool | None = None
    citation_error: str | None = None
    left_out: int = 0
    cut_characters: int = 0
    judgement: Judgement | None = None
    columns: object = None


def aggregate_rows(
    folder: Folder,
    plan: Plan,
    *,
    model: str,
    worker_id: str,
    started_at: datetime,
    revision: str | None = None,
    error_budget: float = 0.0,
    rates: Rates = UNPRICED,
    limits: Limits | None = None,
    evaluation: RowEvaluation | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    report: TaskReport | None = None,
    conclude: Callable[[], Mapping[str, JsonValue]] | None = None,
    now: datetime | None = None,
) -> TaskSummary:
    """Checks that every planned row is there, and writes `responses.json` and `summary.json`.

    Doing it again without any change to the shards or arguments changes nothing, times included.

    Args:
        folder: The task's folder.
        plan: What must be there.
        model: What answered, for people and programs; `echo` for the echo task.
        worker_id: Who aggregates: `host:pid`.
        started_at: When the run that ends here began with the task.
        revision: The model's revision.
        error_budget: The share of rows that may have an error with the result still `ok`.
        rates: What tokens, or seconds of engine time, cost.
        limits: What the task may spend.
        evaluation: How answers are scored; None if they are not.
        metadata: Copied to `responses.json`.
        report: What the task type tells of its rows.
        conclude: Called once the rows are known to be whole and good enough, errors and gate
            considered, before the result is: returns what stands in it besides.
        now: When the rows were there; the present by default.

    The time that the task took is that of all attempts whose part files say when. Where none
    does, it is that from `started_at` to now.

    Raises:
        IncompleteResultsError: If shards or rows do not equal the plan; names what is missing.
        DataError: If rows lack what a metric needs.
        UnknownNameError: If nobody registered a metric.
        TerminalError: If a registered metric fails.
    """
    metadata = metadata or {}
    parts = list_parts(folder)
    _check_shards(parts, plan)
    scoring = None if evaluation is None else evaluation.model_dump(mode="json")
    fingerprint = _fingerprint(parts, plan, model, revision, error_budget, metadata, rates, scoring)
    earlier = _read_earlier(folder)
    if earlier is not None and earlier.fingerprint == fingerprint:
        return earlier
    finished_at = now or datetime.now(UTC)
    tally = Tally(plan)
    head = {
        "task_id": plan.task_id,
        "worker_id": worker_id,
        "metadata": metadata,
        "received_at": finished_at,
    }
    timed = attempt_spans(parts)
    spans = timed or [Span.between(started_at, finished_at)]
    seconds = max(covered_s(spans), 1e-9)
    began_at = datetime.fromtimestamp(min(span.start_s for span in spans), UTC)
    with folder.create(RESPONSES_NAME) as file:
        file.write(msgspec.json.encode(head)[:-1] + b',"result":{"items":[')
        rows = tally.watch(read_rows(folder))
        rows = rows if report is None else _reported(rows, report)
        scores = _write_items(file, folder, plan, rows, evaluation)
        budget = allowed_errors(plan.rows, error_budget, tally.excused_errors)
        usage = tally.usage.result(model=model, wall_s=seconds, rates=rates)
        ok = tally.errors <= budget
        tail: dict[str, Any] = {"ok": ok, "model": model, "usage": usage.model_dump()}
        if scores is not None:
            tail["metrics"] = scores.metrics
        if report is not None:
            tail |= report.result(usage)
        if conclude is not None and ok and (scores is None or scores.passed):
            tail |= conclude()
        file.write(b"\n]," + msgspec.json.encode(tail)[1:] + b"}\n")
    summary = TaskSummary(
        task_id=plan.task_id,
        ok=ok,
        model=model,
        revision=revision,
        source=plan.source,
        data_version=plan.data_version,
        shards=len(plan.shards),
        rows=usage.num_requests,
        errors=tally.errors,
        allowed_errors=budget,
        empty_outputs=tally.empty_outputs,
        finish_reasons=dict(sorted(tally.finish_reasons.items())),
        usage=usage,
        rows_per_s=round(usage.num_requests / seconds, 6),
        tokens_per_s=round(usage.completion_tokens / seconds, 6),
        latency=tally.latency.result(),
        preview=tuple(tally.preview),
        first_errors=tuple(tally.first_errors),
        engines=tuple(sorted(tally.engines - {""})),
        workers=tuple(sorted(tally.workers - {""})),
        revisions=tuple(sorted(tally.revisions - {""})),
        started_at=began_at,
        finished_at=finished_at,
        fingerprint=fingerprint,
        at_once=mean_at_once(timed),
        scores=scores,
        budget=_reached(folder, parts, plan, tally.unaffordable, limits, rates),
        counts={} if report is None else dict(report.counts()),
    )
    folder.write_bytes(SUMMARY_NAME, summary.model_dump_json(indent=2).encode() + b"\n")
    return summary


def _reached(
    folder: Folder,
    parts: Sequence[Part],
    plan: Plan,
    unaffordable: int,
    limits: Limits | None,
    rates: Rates,
) -> BudgetReached | None:
    """Returns the budget that rows were left out for; None if none were."""
    if not unaffordable or limits is None:
        return None
    # All that was computed, and not only the rows that count: of some there are several.
    spend, spans = spend_in_parts(folder, parts)
    spent = Spent.of(spend, covered_s(spans), rates)
    return budget_reached(limits, spent, plan.rows - unaffordable, plan.rows)


def read_summary(folder: Folder) -> TaskSummary:
    """Reads `summary.json`.

    Raises:
        IncompleteResultsError: If the task has none yet.
    """
    try:
        return TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
    except FileNotFoundError:
        raise IncompleteResultsError(
            f"{folder.url} has no {SUMMARY_NAME}: its shards were not aggregated yet"
        ) from None


def _write_items(
    file: IO[bytes],
    folder: Folder,
    plan: Plan,
    rows: Iterable[OutputRow],
    evaluation: RowEvaluation | None,
) -> Scores | None:
    """Writes each row's item; scores the rows if that is asked for."""
    from mloc_dagster.results.columns import TaskColumns  # Arrow is heavy
    from mloc_dagster.results.evaluation import Scorer

    carried = TaskColumns(folder, () if plan.columns is None else (plan.columns,))
    if evaluation is None:
        _write_unscored(file, rows, carried)
        return None
    encode = msgspec.json.Encoder(enc_hook=str).encode
    nothing: dict[str, object] = {}
    scorer, carried_of_each = Scorer(folder, evaluation), carried.rows()
    separator = b"\n"
    for some in batched(rows, _SCORED_ROWS):
        columns = [next(carried_of_each, nothing) for _ in some]
        for row, brought, found in zip(some, columns, scorer.score(some, columns), strict=True):
            file.write(separator + encode(_item(row, {**brought, **found})))
            separator = b",\n"
    return scorer.close()


def _reported(rows: Iterable[OutputRow], report: TaskReport) -> Iterator[OutputRow]:
    for row in rows:
        report.add(row)
        yield row


def _write_unscored(file: IO[bytes], rows: Iterable[OutputRow], carried: TaskColumns) -> None:
    from mloc_dagster.results.json_columns import with_columns

    encode = msgspec.json.Encoder().encode
    separator = b"\n"
    for some in batched(rows, _BATCH_ROWS):
        items = [encode(_item(row)) for row in some]
        blocks: Iterable[bytes | memoryview] = [b",\n".join(items)]
        if carried.schema.names:
            heads = [item[:-1] for item in items]
            made = with_columns(heads, ',"columns":{', carried.take(len(heads)), "}},\n")
            blocks = (block[:-2] for block in made)
        for block in blocks:
            file.write(separator)
            file.write(block)
            separator = b",\n"


def _item(row: OutputRow, columns: Mapping[str, object] | None = None) -> _Item:
    return _Item(
        *(row.index, row.output, row.finish_reason, row.error, row.outputs),
        *(row.custom_id, row.embedding, row.finish_reasons),
        *(row.tool_calls, row.reasoning, row.all_tool_calls, row.all_reasoning),
        *(row.steps, row.stop, row.failed_calls, row.chunks, row.retrieved),
        *(row.citations, row.abstained, row.citation_error, row.left_out, row.cut_characters),
        judgement=row.judgement,
        columns=columns or None,
    )


def _check_shards(parts: Sequence[Part], plan: Plan) -> None:
    written = {part.shard for part in parts}
    foreign = sorted(written - {shard.index for shard in plan.shards})
    if foreign:
        raise IncompleteResultsError(
            f"task {plan.task_id} is planned with {len(plan.shards)} shards, but has rows of shard "
            f"{foreign[0]:04d}: its folder holds the shards of another plan"
        )


def _fingerprint(parts: Sequence[Part], plan: Plan, *arguments: object) -> str:
    # Part files never change and their names are unique: same names, same rows.
    names = [part.name for part in parts]
    described = [plan.model_dump(mode="json"), names, *arguments]
    return hashlib.sha256(msgspec.json.encode(described)).hexdigest()


def _read_earlier(folder: Folder) -> TaskSummary | None:
    if not folder.exists(RESPONSES_NAME):
        return None
    try:
        return TaskSummary.model_validate_json(folder.read_bytes(SUMMARY_NAME))
    except (FileNotFoundError, ValidationError):  # of an older version: written anew
        return None


@dataclass(frozen=True, slots=True)
class RowCounts:
    """What a pass over a task's output rows found.

    Attributes:
        rows: How many there are.
        first_gap: The first index that is missing or out of order; None when there is none.
        errors: Rows that ended with an error.
        first_error: Index and text of the first of them.
        empty: Rows without an error whose output is empty.
        excused: Those of the errors that are an earlier task's, or the budget's.
        unaffordable: Those of the errors that are the budget's.
    """

    rows: int
    first_gap: int | None
    errors: int
    first_error: tuple[int, str] | None
    empty: int
    excused: int = 0
    unaffordable: int = 0


def count_rows(rows: Iterable[OutputRow]) -> RowCounts:
    """Counts rows, gaps, errors and empty outputs in one pass."""
    expected = errors = empty = excused = unaffordable = 0
    first_gap: int | None = None
    first_error: tuple[int, str] | None = None
    for row in rows:
        if row.index != expected and first_gap is None:
            first_gap = expected
        expected += 1
        if row.error is not None:
            errors += 1
            excused += row.fault in EXCUSED_FAULTS
            unaffordable += row.fault == BUDGET_FAULT
            first_error = first_error or (row.index, row.error)
        elif is_empty(row):
            empty += 1
    return RowCounts(expected, first_gap, errors, first_error, empty, excused, unaffordable)
