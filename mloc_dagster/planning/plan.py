"""The plan of a task: its input, cut into shards. Written once, as `plan.json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Shard(BaseModel):
    """A contiguous range of the plan's places: the unit of placement and retry.

    Attributes:
        task_id: The task it belongs to.
        index: Place among the task's shards, from 0.
        total: How many shards the task has.
        start: First place (inclusive).
        stop: Last place (exclusive).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    index: int = Field(ge=0)
    total: int = Field(ge=1)
    start: int = Field(ge=0)
    stop: int = Field(gt=0)

    @property
    def rows(self) -> int:
        """How many rows the shard holds."""
        return self.stop - self.start

    @property
    def key(self) -> str:
        """Folder name, and Dagster mapping key: `0007`."""
        return shard_key(self.index)


def shard_key(index: int) -> str:
    """Returns how a shard is called everywhere: in folders, log files, steps and messages."""
    return f"{index:04d}"


def shard_count(rows: int, max_shards: int, shard_rows: int = 1) -> int:
    """Returns into how many shards rows are cut.

    Args:
        rows: How many rows there are.
        max_shards: Upper bound.
        shard_rows: Rows that each shard is to have about, if there are as many.
    """
    return min(max_shards, -(-rows // shard_rows))


def cut_shards(task_id: str, rows: int, max_shards: int) -> list[Shard]:
    """Cuts `rows` into at most `max_shards` ranges whose sizes differ by at most one.

    Args:
        task_id: The task the shards belong to.
        rows: How many rows there are; at least one.
        max_shards: Upper bound; fewer rows than this give one shard a row.

    Raises:
        ValueError: If `rows` or `max_shards` is below one.
    """
    if rows < 1 or max_shards < 1:
        raise ValueError(f"cannot cut {rows} rows into {max_shards} shards")
    total = min(rows, max_shards)
    base, extra = divmod(rows, total)
    shards: list[Shard] = []
    start = 0
    for index in range(total):
        stop = start + base + (index < extra)
        shards.append(Shard(task_id=task_id, index=index, total=total, start=start, stop=stop))
        start = stop
    return shards


PLAN_NAME = "plan.json"
"""Its file in the task's folder."""


class Chunk(BaseModel):
    """One file of the spooled input.

    Attributes:
        name: File name below the task's folder.
        start: Place of its first row.
        rows: How many rows it holds.
        crc32: Checksum of its bytes; None in plans of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    start: int = Field(ge=0)
    rows: int = Field(ge=1)
    crc32: int | None = None


class CarriedColumns(BaseModel):
    """The columns that rows bring along from their source; see `results.columns`.

    Attributes:
        names: Their names, in order.
        arrow_schema: The types that all rows have in common: an Arrow schema in base64.
        chunks: The files, in order of index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    arrow_schema: str
    chunks: tuple[Chunk, ...]


class ShardLoad(BaseModel):
    """What a shard is expected to take.

    Attributes:
        prompt_tokens: Tokens that are read.
        cached_tokens: How many of them are expected in the engine's prefix cache.
        output_tokens: Tokens that are written at most or, where history says less, on average.
        cost: Tokens that are computed, weighted: see `planning.order`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float


class Expectation(BaseModel):
    """What a task is expected to take, as its plan was balanced by.

    Attributes:
        tokens: How prompt tokens were found: counted, and by which tokenizer, or estimated.
        counted: Whether they were counted.
        prefill: Cost of a prompt token that is not in the prefix cache.
        decode: Cost of a token that is written.
        block_tokens: Block size of the prefix cache that was assumed; 0 for none.
        shards: One entry per shard.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokens: str
    counted: bool
    prefill: float
    decode: float
    block_tokens: int
    shards: tuple[ShardLoad, ...]

    @property
    def prompt_tokens(self) -> int:
        """Tokens that all shards read."""
        return sum(shard.prompt_tokens for shard in self.shards)

    @property
    def output_tokens(self) -> int:
        """Tokens that all shards are expected to write."""
        return sum(shard.output_tokens for shard in self.shards)

    @property
    def prefix_hit_share(self) -> float:
        """Share of the prompt tokens that is expected in the prefix cache."""
        cached = sum(shard.cached_tokens for shard in self.shards)
        return cached / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def imbalance(self) -> float:
        """Cost of the costliest shard over the mean: 1 is perfect."""
        costs = [shard.cost for shard in self.shards]
        return max(costs) * len(costs) / sum(costs)


class Plan(BaseModel):
    """How a task's input became shards.

    A row's *index* is its place in the input. Its *place* is where the plan put it: rows change
    places within windows only, and a window's rows have the same numbers as places and indexes.

    Attributes:
        task_id: The task.
        source: Where the rows came from, for people: `tests/questions.jsonl train[:20]`.
        rows: How many rows there are.
        data_version: Hex sha256 over the input rows, in order of index, and their columns.
        seed: The seed that sampling uses; the template's, or one drawn for this task.
        chunks: The spooled input, in order of place.
        shards: Ranges of places that cover all rows.
        windows: The first index of each window; none where every place is the index.
        expected: What the shards are expected to take; None where rows were only counted.
        columns: What the rows bring along; None where that is nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    source: str
    rows: int = Field(ge=1)
    data_version: str
    seed: int
    chunks: tuple[Chunk, ...]
    shards: tuple[Shard, ...]
    windows: tuple[int, ...] = ()
    expected: Expectation | None = None
    columns: CarriedColumns | None = None
