"""Cutting a task's rows into shards."""

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
