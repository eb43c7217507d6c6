"""What a task has spent: the truth is in its part files, and notes tell running workers of it.

A worker that computes a shard keeps the shard's note `shards/NNNN/spend.json` fresh, and reads
those of the others. A note is made anew from part files when an attempt begins: what a killed
worker's note said beyond them is forgotten with the rows that it had not written yet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec
from pydantic import BaseModel, ConfigDict

from mloc_dagster.errors import DamagedFileError
from mloc_dagster.planning import Shard
from mloc_dagster.results.part_files import Part, decode_part
from mloc_dagster.results.rates import Rates
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.spans import Span, attempt_spans
from mloc_dagster.results.store import Folder
from mloc_dagster.schema import Limits

LimitName = Literal["tokens", "cost", "seconds"]
LIMIT_NAMES: tuple[LimitName, ...] = ("tokens", "cost", "seconds")


class Spend(msgspec.Struct):
    """What was computed; a counter.

    Attributes:
        prompt_tokens: Tokens read.
        cached_tokens: Those of them that were in a prefix cache.
        completion_tokens: Tokens written.
        engine_s: Busy seconds of engines.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    engine_s: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens

    def add(self, row: OutputRow | _SpentRow) -> None:
        """Counts a row, unless another one was computed for it."""
        if not row.reused:
            self.plus(row)

    def plus(self, other: OutputRow | _SpentRow | Spend) -> None:
        """Counts all that something took."""
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.completion_tokens += other.completion_tokens
        self.engine_s += other.engine_s


class _SpentRow(msgspec.Struct):
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    engine_s: float = 0.0
    reused: str = ""


class Spent(msgspec.Struct, frozen=True):
    """Amounts that a budget limits.

    Attributes:
        tokens: Read and written.
        cost: 0 without a price.
        seconds: In which a shard was at work.
    """

    tokens: int
    cost: float
    seconds: float

    @classmethod
    def of(cls, spend: Spend, seconds: float, rates: Rates) -> Spent:
        """Returns what this comes to."""
        return cls(spend.tokens, rates.cost(spend) or 0.0, seconds)

    def amount(self, name: LimitName) -> float:
        """Returns one of them."""
        return getattr(self, name)


def first_reached(limits: Limits, spent: Spent) -> LimitName | None:
    """Returns the first limit that is spent; None while all leave something."""
    for name in LIMIT_NAMES:
        limit = limits.given.get(name)
        if limit is not None and spent.amount(name) >= limit:
            return name
    return None


class BudgetReached(BaseModel):
    """A budget that ended a task before all its rows were computed.

    Attributes:
        name: Which limit.
        limit: What might have been spent.
        spent: What was.
        computed: Rows that have been dealt with by then.
        rows: Rows of the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: LimitName
    limit: float
    spent: float
    computed: int
    rows: int

    @property
    def amounts(self) -> str:
        """What was spent of how much: `tokens 20,013 of 20,000`."""
        return f"{self.name} {_shown(self.spent)} of {_shown(self.limit)}"

    @property
    def progress(self) -> str:
        """How far the task came: `after 812 of 2,000 rows`."""
        return f"after {self.computed:,} of {self.rows:,} rows"

    def __str__(self) -> str:
        """Returns both, as people read it."""
        return f"budget reached: {self.amounts} {self.progress}"


def budget_reached(limits: Limits, spent: Spent, computed: int, rows: int) -> BudgetReached:
    """Returns which limit rows were left out for.

    Args:
        limits: Of the task; at least one.
        spent: What the task has spent.
        computed: Rows that were not left out.
        rows: Rows of the task.
    """
    name = first_reached(limits, spent) or _first_given(limits)
    return BudgetReached(
        name=name,
        limit=limits.given[name],
        spent=spent.amount(name),
        computed=computed,
        rows=rows,
    )


def _first_given(limits: Limits) -> LimitName:
    if limits.tokens is not None:
        return "tokens"
    return "seconds" if limits.cost is None else "cost"


def not_computed(name: LimitName, limit: float) -> str:
    """Returns the error of a row that was not computed for a budget."""
    what = f"cost {_shown(limit)}" if name == "cost" else f"{_shown(limit)} {name}"
    return f"not computed: the task's budget of {what} was spent"


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if float(amount).is_integer() else f"{amount:,.6g}"


def spend_in_parts(folder: Folder, parts: Iterable[Part]) -> tuple[Spend, list[Span]]:
    """Returns what part files hold, and when the attempts were at work that wrote them.

    Rows that were computed several times count as often. A damaged file counts for nothing: its
    rows are computed again.
    """
    parts = list(parts)
    decoder, spend = msgspec.json.Decoder(_SpentRow), Spend()
    for part in parts:
        try:
            rows = decode_part(folder, part, decoder)
        except DamagedFileError:  # whoever computes its shard says so
            continue
        for row in rows:
            spend.add(row)
    return spend, attempt_spans(parts)


class ShardSpend(msgspec.Struct, frozen=True):
    """The note of a shard.

    Attributes:
        spend: What its rows took.
        spans: When its attempts were at work, as seconds since 1970.
    """

    spend: Spend
    spans: list[tuple[float, float]] = []


def read_spend(folder: Folder, shard: Shard) -> ShardSpend | None:
    """Returns the note of a shard; None when there is none that can be read."""
    try:
        return msgspec.json.decode(folder.read_bytes(_name(shard)), type=ShardSpend)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def write_spend(folder: Folder, shard: Shard, note: ShardSpend) -> None:
    """Replaces the note of a shard."""
    folder.write_bytes(_name(shard), msgspec.json.encode(note))


def _name(shard: Shard) -> str:
    return f"shards/{shard.key}/spend.json"
