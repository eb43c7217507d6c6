"""`summary.json`: a task's results at a glance."""

from __future__ import annotations

from pydantic import AwareDatetime, BaseModel, ConfigDict

from mloc_dagster.results.latency import Latencies

SUMMARY_NAME = "summary.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReusedRows(_Frozen):
    """Rows that were not computed.

    Attributes:
        task: An equal row of the same task was computed instead.
        cache: An earlier task had computed them.
    """

    task: int = 0
    cache: int = 0


class Usage(_Frozen):
    """What a task took, as `responses.json` has it.

    Everything but `latency_sec` is a sum over the rows that stand in the result. What was computed
    and lost, with a worker that died, is in none of it.

    Attributes:
        prompt_tokens: Tokens of all prompts, those of reused rows included.
        completion_tokens: Tokens of all answers, those of reused rows included.
        total_tokens: Both.
        latency_sec: Wall seconds in which shards were at work, from loading the model to their last
            row; of all attempts and runs, without the pauses between them.
        num_requests: Rows.
        model: What answered.
        cached_tokens: Prompt tokens that the engine found in its prefix cache.
        cache_hit_rate: `cached_tokens` as a share of the prompt tokens of rows that were computed.
        padding_tokens: Tokens that were computed only to fill batches.
        reused_rows: Rows that were not computed.
        reused_tokens: Tokens, read and written, that nobody computed because of that.
        saved_seconds: Engine seconds that the reuse saved.
        engine_seconds: Seconds in which engines worked on these rows, over all workers.
        gpu_seconds: `engine_seconds` times the GPUs that the engines ran on; 0 on CPUs.
        energy_joules: What the GPUs drew meanwhile; None where nothing measures it.
        cost: `engine_seconds` in hours times `resources.cost_per_hour`; None without that price.
            Workers that load models or wait are not in it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    latency_sec: float
    num_requests: int
    # Summaries of earlier versions have none of these.
    model: str = ""
    cached_tokens: int = 0
    cache_hit_rate: float = 0.0
    padding_tokens: int = 0
    reused_rows: ReusedRows = ReusedRows()
    reused_tokens: int = 0
    saved_seconds: float = 0.0
    engine_seconds: float = 0.0
    gpu_seconds: float = 0.0
    energy_joules: float | None = None
    cost: float | None = None


class PreviewRow(_Frozen):
    """A row for people: texts shortened.

    Attributes:
        index: The input's place.
        prompt: The text, or the last chat message.
        output: The first output.
        finish_reason: Why it ended.
        error: Why there is no output.
    """

    index: int
    prompt: str
    output: str
    finish_reason: str
    error: str | None = None


class TaskSummary(_Frozen):
    """What a task left, without its rows.

    Attributes:
        task_id: The task.
        ok: Whether its errors stay within its budget.
        model: What answered.
        revision: Which revision of it, when one was named.
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
    at_once: float | None = None  # summaries of earlier versions have none
