"""The plan of a task: what its input is, and how it is cut. Written once, as `plan.json`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mloc_dagster.planning.shards import Shard


class Chunk(BaseModel):
    """One file of the spooled input.

    Attributes:
        name: File name below the task's folder.
        start: Index of its first row.
        rows: How many rows it holds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    start: int = Field(ge=0)
    rows: int = Field(ge=1)


class Plan(BaseModel):
    """How a task's input became shards.

    Attributes:
        task_id: The task.
        source: Where the rows came from, for people: `tests/questions.jsonl train[:20]`.
        rows: How many rows there are.
        data_version: Hex sha256 over the spooled rows, in order.
        seed: The seed that sampling uses; the template's, or one drawn for this task.
        chunks: The spooled input, in order.
        shards: Ranges that cover all rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    source: str
    rows: int = Field(ge=1)
    data_version: str
    seed: int
    chunks: tuple[Chunk, ...]
    shards: tuple[Shard, ...]
