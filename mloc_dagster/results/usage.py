"""What rows took: tokens, engine time, energy, cost. A task's figures are the sums of its rows'."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.summary import TaskSummary
from mloc_dagster.schema.result import ReusedRows, Usage

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Rates:
    """What a second of the engine's time costs.

    Attributes:
        cost_per_hour: What one worker costs an hour; None where the template does not say.
    """

    cost_per_hour: float | None = None

    def cost(self, engine_s: float) -> float | None:
        """Returns what so much of a worker's time costs; None without a price."""
        if self.cost_per_hour is None:
            return None
        return engine_s / SECONDS_PER_HOUR * self.cost_per_hour


UNPRICED = Rates()


class UsageCounter:
    """Adds up what rows took.

    Tokens of reused rows are counted with the others: they are in the answers. How many of them
    nobody computed is told apart.
    """

    def __init__(self) -> None:
        self.rows = self.prompt_tokens = self.completion_tokens = 0
        self.cached_tokens = self.padding_tokens = 0
        self.engine_s = self.gpu_s = self.saved_s = 0.0
        self.energy_j: float | None = None
        self._reused = {"task": 0, "cache": 0}
        self._reused_prompt_tokens = self._reused_completion_tokens = 0

    def add(self, row: OutputRow) -> None:
        """Counts one row."""
        self.rows += 1
        self.prompt_tokens += row.prompt_tokens
        self.completion_tokens += row.completion_tokens
        self.cached_tokens += row.cached_tokens
        self.padding_tokens += row.padding_tokens
        self.engine_s += row.engine_s
        self.gpu_s += row.gpu_s
        if row.energy_j is not None:
            self.energy_j = (self.energy_j or 0.0) + row.energy_j
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
            rates: What engine time costs.
        """
        read = self.prompt_tokens - self._reused_prompt_tokens
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
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
            cost=_rounded(rates.cost(self.engine_s)),
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
