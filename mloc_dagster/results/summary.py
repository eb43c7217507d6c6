"""`summary.json`: a task's results at a glance."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict

from mloc_dagster.results.latency import Latencies
from mloc_dagster.schema.result import Usage

SUMMARY_NAME = "summary.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreviewRow(_Frozen):
    """A row for people: texts shortened.

    Attributes:
        index: The input's place.
        prompt: The text, or the last chat message.
        output: The first output.
        finish_reason: Why it ended.
        error: Why there is no output.
        custom_id: What its sender calls it.
    """

    index: int
    prompt: str
    output: str
    finish_reason: str
    error: str | None = None
    custom_id: str | None = None


class TaskSummary(_Frozen):
    """What a task left, without its rows.

    Attributes:
        task_id: The task.
        ok: Whether its errors stay within its budget.
        model: What answered.
        revision: Which revision of it, when one was named.
        revisions: Which states of it computed the rows; one, unless another was accepted.
        source: Where the input came from.
        data_version: Hex sha256 over the input.
        shards: How many shards there were.
        rows: How many rows there are; as many as the input had.
        errors: Rows that ended with an error.
        allowed_errors: How many might have.
        empty_outputs: Rows without an error whose output is empty.
        finish_reasons: How many rows ended for which reason.
        usage: Tokens and time.
        rows_per_s: Rows, over `usage.latency_sec`.
        tokens_per_s: Tokens written, over the same.
        latency: Of single rows.
        preview: The first rows.
        first_errors: The first rows with an error.
        engines: What computed the rows, with versions.
        workers: Who computed them.
        at_once: How many of them worked at once, on average; None where nothing tells.
        started_at: When the first attempt that left rows began.
        finished_at: When all its rows were there.
        fingerprint: Changes when a row, or anything else that goes into the files, changes.
    """

    task_id: str
    ok: bool
    model: str
    revision: str | None
    source: str
    data_version: str
    shards: int
    rows: int
    errors: int
    allowed_errors: int
    empty_outputs: int
    finish_reasons: dict[str, int]
    usage: Usage
    rows_per_s: float
    tokens_per_s: float
    latency: Latencies
    preview: tuple[PreviewRow, ...]
    first_errors: tuple[PreviewRow, ...]
    engines: tuple[str, ...]
    workers: tuple[str, ...]
    started_at: AwareDatetime
    finished_at: AwareDatetime
    fingerprint: str
    revisions: tuple[str, ...] = ()
    at_once: float | None = None  # summaries of earlier versions have none
