"""What exports say of a row: the output, and where it comes from."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterator

import msgspec

from mloc_dagster.planning import Plan
from mloc_dagster.results.rows import OutputRow, Prompt
from mloc_dagster.results.summary import Rates


class ExportRow(msgspec.Struct):
    """One input and what became of it, with where that came from. Columns of every export.

    Attributes:
        task_id: The task.
        shard: Index of the shard that computed it.
        index: The input's place in the whole input.
        prompt: Text; chat messages as JSON.
        prompt_sha256: Hex sha256 over `prompt`.
        output: The text; empty when `error` is set.
        outputs: All texts when more than one was asked for.
        finish_reason: `stop`, `length` or `error`.
        error: Why there is no output.
        model: What answered.
        revision: Which state of it: the hub's commit, or `sha256:…` over its files.
        engine: What computed it, with version.
        worker: Who computed it.
        attempt: The shard's attempt that computed it, from 1.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        latency_s: Seconds from the row's start to its end.
        cached_tokens: Prompt tokens that the engine found in its prefix cache.
        engine_s: The row's share of the engine's busy seconds.
        energy_j: The row's share of the device's energy in joules; None where nothing measures it.
        gpu_s: `engine_s` times the GPUs that the engine ran on; 0 on CPUs.
        cost: `engine_s` at the price of the task's workers; None without a price.
        reused: `task` or `cache` when the row was not computed itself.
        saved_s: Engine seconds that the reuse saved.
        custom_id: What its sender calls it.
    """

    task_id: str
    shard: int
    index: int
    prompt: str
    prompt_sha256: str
    output: str
    outputs: list[str] | None
    finish_reason: str
    error: str | None
    model: str
    revision: str | None
    engine: str
    worker: str
    attempt: int
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    cached_tokens: int
    engine_s: float
    energy_j: float | None
    gpu_s: float
    cost: float | None
    reused: str | None
    saved_s: float
    custom_id: str | None


class VectorRow(ExportRow):
    """A row of an embedding task.

    Attributes:
        embedding: The vector; None when `error` is set.
    """

    embedding: list[float] | None = None


RESERVED_COLUMNS = frozenset((*VectorRow.__struct_fields__, "finish_reasons"))
"""Names of results; a column of the input that has one is called `input_` and its name."""


def column_called(name: str, columns: Collection[str]) -> str:
    """Returns what a column of the input is called among these, which may not be its own name."""
    renamed = f"input_{name}"
    return renamed if name not in columns and renamed in columns else name


def free_name(name: str, taken: Collection[str]) -> str:
    """Returns what a column of the input is called where others have names as well."""
    while name in taken:
        name = f"input_{name}"
    return name


def prompt_text(prompt: Prompt) -> str:
    """Returns the prompt as one string: chat messages as the JSON text of their list."""
    return prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()


def export_rows(
    rows: Iterator[OutputRow],
    plan: Plan,
    model: str,
    revision: str | None,
    rates: Rates,
    *,
    vectors: bool = False,
) -> Iterator[ExportRow]:
    """Adds to each row where it comes from; `rows` come in order of index."""
    starts = [shard.start for shard in plan.shards]
    for row in rows:
        prompt = prompt_text(row.prompt)
        place = row.index if row.place < 0 else row.place
        exported = ExportRow(
            plan.task_id,
            plan.shards[bisect_right(starts, place) - 1].index,
            row.index,
            prompt,
            hashlib.sha256(prompt.encode()).hexdigest(),
            row.output,
            row.outputs,
            row.finish_reason,
            row.error,
            model,
            row.revision or revision,
            row.engine,
            row.worker,
            row.attempt,
            row.prompt_tokens,
            row.completion_tokens,
            row.latency_s,
            row.cached_tokens,
            row.engine_s,
            row.energy_j,
            row.gpu_s,
            rates.cost(row.engine_s),
            row.reused or None,
            row.saved_s,
            row.custom_id,
        )
        yield _with_vector(exported, row) if vectors else exported


def _with_vector(exported: ExportRow, row: OutputRow) -> VectorRow:
    return VectorRow(*msgspec.structs.astuple(exported), embedding=row.embedding)
