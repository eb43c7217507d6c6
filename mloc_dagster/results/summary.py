"""`summary.json`: a task's rows, latencies, usage and cost at a glance."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import AwareDatetime, BaseModel, ConfigDict

from mloc_dagster.planning import CarriedColumns
from mloc_dagster.results.rates import Rates
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.spend import BudgetReached, Spend
from mloc_dagster.schema import ReusedRows, Usage

# From 0.1 ms to 10,000 s; a bucket is 12 % wide, which bounds the percentiles' error.
_PER_DECADE = 20
_LOWEST_POWER = -4
_BUCKETS = 8 * _PER_DECADE


class Latencies(BaseModel):
    """How long rows took, in seconds.

    Attributes:
        min: The fastest.
        mean: On average.
        p50: Half of them took at most this; percentiles are exact to 12 %.
        p90: Nine in ten.
        p95: 19 in 20.
        p99: 99 in 100.
        max: The slowest.
        edges_s: Edges of the histogram, one more than `counts`; evenly spaced on a log scale.
        counts: Rows between two neighbouring edges.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    edges_s: tuple[float, ...]
    counts: tuple[int, ...]


class LatencyCounter:
    """Counts latencies into buckets that are fixed beforehand."""

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._rows = 0
        self._sum = 0.0
        self._min = math.inf
        self._max = 0.0

    def add(self, latency_s: float) -> None:
        """Counts one row."""
        bucket = 0
        if latency_s > 0:
            bucket = int((math.log10(latency_s) - _LOWEST_POWER) * _PER_DECADE)
            bucket = max(0, min(_BUCKETS - 1, bucket))
        self._counts[bucket] += 1
        self._rows += 1
        self._sum += latency_s
        self._min = min(self._min, latency_s)
        self._max = max(self._max, latency_s)

    def result(self) -> Latencies:
        """Returns what was counted, the histogram without empty buckets at its ends."""
        filled = [place for place, count in enumerate(self._counts) if count] or [0]
        first, last = filled[0], filled[-1]
        return Latencies(
            min=self._min if self._rows else 0.0,
            mean=self._sum / self._rows if self._rows else 0.0,
            p50=self._percentile(0.50),
            p90=self._percentile(0.90),
            p95=self._percentile(0.95),
            p99=self._percentile(0.99),
            max=self._max,
            edges_s=tuple(_edge(place) for place in range(first, last + 2)),
            counts=tuple(self._counts[first : last + 1]),
        )

    def _percentile(self, share: float) -> float:
        wanted = math.ceil(share * self._rows)
        seen = 0
        for place, count in enumerate(self._counts):
            seen += count
            if seen >= wanted and count:
                return min(max(_edge(place + 1), self._min), self._max)
        return 0.0


def _edge(place: int) -> float:
    return float(f"{10 ** (_LOWEST_POWER + place / _PER_DECADE):.4g}")


SUMMARY_NAME = "summary.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PreviewRow(_Frozen):
    """A row for people: texts shortened.

    Attributes:
        index: The input's place.
        prompt: The text, or the last chat message.
        output: The first output, with the calls of tools in it.
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


class Ranking(_Frozen):
    """Where relevant passages stand in what was found, over the rows that say what is relevant.

    Attributes:
        rows: How many rows these are.
        recall: The mean recall at k, by k, up to the deepest that was found.
        first_ranks: Rows whose first relevant passage stands at rank 1, 2, and so on.
        missed: Rows for which nothing relevant was found.
    """

    rows: int
    recall: tuple[tuple[int, float], ...]
    first_ranks: tuple[int, ...]
    missed: int


class WorstRow(_Frozen):
    """A row with low scores, for people: texts shortened.

    Attributes:
        index: The input's place.
        scores: By metric.
        prompt: The text, or the last chat message.
        expected: The right answer, or the ids of what should be found.
        found: The output, or the ids of what was found, the best first.
    """

    index: int
    scores: dict[str, float | None]
    prompt: str
    expected: str
    found: str


class Scores(_Frozen):
    """What became of an evaluation.

    Attributes:
        metrics: The mean of each metric over the rows that have a score, and `NAME/pass@K`.
        scored: How many rows these are, by metric.
        columns: Where the rows' own scores are.
        gate: The gate's comparisons with their figures; empty without a gate.
        passed: Whether the result may be handed on.
        ranking: Where relevant passages stand, of a task that searches.
        worst: The rows with the lowest scores, the worst first.
    """

    metrics: dict[str, float]
    scored: dict[str, int]
    columns: CarriedColumns | None = None
    gate: str = ""
    passed: bool = True
    ranking: Ranking | None = None
    worst: tuple[WorstRow, ...] = ()


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
        scores: What the template's `evaluation` came to; None without one.
        budget: The budget that was reached before all rows were computed; None if none was.
        counts: How often what the task type counts has happened, by name.
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
    scores: Scores | None = None
    budget: BudgetReached | None = None
    counts: dict[str, int] = {}


class UsageCounter:
    """Adds up what rows took.

    Tokens of reused rows are counted with the others: they are in the answers. How many of them
    nobody computed is told apart.
    """

    def __init__(self) -> None:
        self.rows = self.prompt_tokens = self.completion_tokens = 0
        self.cached_tokens = self.padding_tokens = self.reasoning_tokens = 0
        self.engine_s = self.gpu_s = self.saved_s = 0.0
        self.energy_j: float | None = None
        self._spend = Spend()
        self._reused = {"task": 0, "cache": 0}
        self._reused_prompt_tokens = self._reused_completion_tokens = 0

    def add(self, row: OutputRow) -> None:
        """Counts one row."""
        self.rows += 1
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.cached_tokens += row.cached_tokens
        self.padding_tokens += row.padding_tokens
        self.reasoning_tokens += row.reasoning_tokens
        self.engine_s += row.engine_s
        self.gpu_s += row.gpu_s
        if row.energy_j is not None:
            self.energy_j = (self.energy_j or 0.0) + row.energy_j
        self._spend.add(row)
        if row.reused:
            self._reused[row.reused] = self._reused.get(row.reused, 0) + 1
            self._reused_prompt_tokens += row.prompt_tokens
            self._reused_completion_tokens += row.completion_tokens
            self.saved_s += row.saved_s

    def result(self, *, model: str, wall_s: float, rates: Rates) -> Usage:
        """Returns the figures.

        Args:
            model: What answered.
            wall_s: Seconds in which the task was computed.
            rates: What tokens, or engine time, cost.
        """
        read = self.prompt_tokens - self._reused_prompt_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            reasoning_tokens=self.reasoning_tokens,
            total_tokens=self.prompt_tokens + self.completion_tokens,
            latency_sec=round(wall_s, 6),
            num_requests=self.rows,
            model=model,
            cached_tokens=self.cached_tokens,
            cache_hit_rate=round(self.cached_tokens / read, 6) if read else 0.0,
            padding_tokens=self.padding_tokens,
            reused_rows=ReusedRows(task=self._reused["task"], cache=self._reused["cache"]),
            reused_tokens=self._reused_prompt_tokens + self._reused_completion_tokens,
            saved_seconds=round(self.saved_s, 6),
            engine_seconds=round(self.engine_s, 6),
            gpu_seconds=round(self.gpu_s, 6),
            energy_joules=None if self.energy_j is None else round(self.energy_j, 6),
            cost=_rounded(rates.cost(self._spend)),
        )


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """What the tasks of one model took together; the figures are those of `Usage`.

    Attributes:
        model: What answered.
        tasks: How many tasks it answered.
        rows: Their rows.
        prompt_tokens: Tokens of their prompts.
        completion_tokens: Tokens of their answers.
        engine_seconds: Seconds in which engines worked.
        gpu_seconds: These times the GPUs.
        energy_joules: What the GPUs drew; None if nothing measured it for any of the tasks.
        cost: None if none of the tasks has a price.
    """

    model: str
    tasks: int
    rows: int
    prompt_tokens: int
    completion_tokens: int
    engine_seconds: float
    gpu_seconds: float
    energy_joules: float | None
    cost: float | None


def usage_by_model(summaries: Iterable[TaskSummary]) -> list[ModelUsage]:
    """Adds up what tasks took, by their model, in order of its first task."""
    usages: dict[str, list[Usage]] = {}
    for summary in summaries:
        usages.setdefault(summary.model, []).append(summary.usage)
    return [
        ModelUsage(
            model=model,
            tasks=len(of_model),
            rows=sum(each.num_requests for each in of_model),
            prompt_tokens=sum(each.prompt_tokens for each in of_model),
            completion_tokens=sum(each.completion_tokens for each in of_model),
            engine_seconds=round(sum(each.engine_seconds for each in of_model), 6),
            gpu_seconds=round(sum(each.gpu_seconds for each in of_model), 6),
            energy_joules=_sum_of_known(each.energy_joules for each in of_model),
            cost=_sum_of_known(each.cost for each in of_model),
        )
        for model, of_model in usages.items()
    ]


def _sum_of_known(amounts: Iterable[float | None]) -> float | None:
    known = [amount for amount in amounts if amount is not None]
    return _rounded(sum(known)) if known else None


def _rounded(amount: float | None) -> float | None:
    # A row of a small model costs about 1e-6: what is rounded away must not show in their sum.
    return None if amount is None else round(amount, 12)
