"""What exports say of a row: the output, and where it comes from."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

from mloc_dagster.planning import Plan
from mloc_dagster.results.rates import Rates
from mloc_dagster.results.rows import OutputRow, Prompt, ToolCall


class RowColumn(NamedTuple):
    """A column of every export.

    Attributes:
        type: What Arrow calls its type.
        about: What it holds.
        nullable: Whether a row may have none.
    """

    type: str
    about: str
    nullable: bool = False


ROW_COLUMNS: Mapping[str, RowColumn] = MappingProxyType(
    {
        "task_id": RowColumn("string", "The task."),
        "shard": RowColumn("int32", "Index of the shard that computed it."),
        "index": RowColumn("int64", "The input's place in the whole input."),
        "prompt": RowColumn("string", "Text; chat messages as JSON."),
        "prompt_sha256": RowColumn("string", "Hex sha256 over `prompt`."),
        "output": RowColumn("string", "The text; empty when `error` is set."),
        "outputs": RowColumn(
            "list<string>", "All texts when more than one was asked for.", nullable=True
        ),
        "tool_calls": RowColumn(
            "list<tool_call>", "What the model called, in OpenAI's form.", nullable=True
        ),
        "reasoning": RowColumn("string", "What it thought before it answered.", nullable=True),
        "finish_reason": RowColumn("string", "`stop`, `length`, `tool_calls` or `error`."),
        "stop": RowColumn(
            "string",
            "What ended an agent's row: `answer`, `max_steps`, `budget`, `timeout` or `error`.",
            nullable=True,
        ),
        "steps": RowColumn("int32", "Turns of the model, of an agent's row.", nullable=True),
        "failed_calls": RowColumn(
            "int32", "Those of an agent's calls of tools that failed.", nullable=True
        ),
        "error": RowColumn("string", "Why there is no output.", nullable=True),
        "model": RowColumn("string", "What answered."),
        "revision": RowColumn(
            "string",
            "Which state of it: the hub's commit, or `sha256:…` over its files.",
            nullable=True,
        ),
        "engine": RowColumn("string", "What computed it, with version."),
        "worker": RowColumn("string", "Who computed it."),
        "attempt": RowColumn("int32", "The shard's attempt that computed it, from 1."),
        "prompt_tokens": RowColumn("int64", "Tokens read."),
        "completion_tokens": RowColumn("int64", "Tokens written."),
        "reasoning_tokens": RowColumn("int64", "Tokens of thoughts among them."),
        "latency_s": RowColumn("double", "Seconds from the row's start to its end."),
        "cached_tokens": RowColumn(
            "int64", "Prompt tokens that the engine found in its prefix cache."
        ),
        "engine_s": RowColumn("double", "The row's share of the engine's busy seconds."),
        "energy_j": RowColumn(
            "double",
            "The row's share of the device's energy in joules; none where nothing measures it.",
            nullable=True,
        ),
        "gpu_s": RowColumn(
            "double", "`engine_s` times the GPUs that the engine ran on; 0 on CPUs."
        ),
        "cost": RowColumn(
            "double",
            "Its tokens, or `engine_s`, at the task's prices; none without a price.",
            nullable=True,
        ),
        "reused": RowColumn(
            "string", "`task` or `cache` when the row was not computed itself.", nullable=True
        ),
        "saved_s": RowColumn("double", "Engine seconds that the reuse saved."),
        "custom_id": RowColumn("string", "What its sender calls it.", nullable=True),
    }
)
"""The columns that the rows of every task have, in order."""

MORE_COLUMNS: Mapping[str, RowColumn] = MappingProxyType(
    {
        "chunks": RowColumn("list<passage>", "What the document was cut into.", nullable=True),
        "retrieved": RowColumn(
            "list<passage>", "What was found for the row, the best first.", nullable=True
        ),
        "citations": RowColumn("list<citation>", "What the answer names of it.", nullable=True),
        "abstained": RowColumn(
            "bool", "Whether the passages do not hold the answer, as the model says.", nullable=True
        ),
        "citation_error": RowColumn(
            "string", "Why the citations are not what they should be.", nullable=True
        ),
        "left_out": RowColumn("int32", "Passages, the last ones, that there was no room for."),
        "cut_characters": RowColumn(
            "int32", "How much of the only passage's end there was no room for."
        ),
        "judgement": RowColumn(
            "judgement", "What a judge says of the answer; none if it is not judged.", nullable=True
        ),
    }
)
"""Columns that the rows of some tasks have; see `RowSpec.leaves`."""


class ExportRow(msgspec.Struct):
    """One input and what became of it, with where that came from: a field for each of the columns.

    An embedding task's rows are of `VectorRow`.
    """

    task_id: str
    shard: int
    index: int
    prompt: str
    prompt_sha256: str
    output: str
    outputs: list[str] | None
    tool_calls: list[ToolCall] | None
    reasoning: str | None
    finish_reason: str
    stop: str | None
    steps: int | None
    failed_calls: int | None
    error: str | None
    model: str
    revision: str | None
    engine: str
    worker: str
    attempt: int
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int
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


@cache
def row_kind(leaves: tuple[str, ...]) -> type[ExportRow]:
    """Returns the class of rows that have these of `MORE_COLUMNS`, as fields of those names."""
    if not leaves:
        return ExportRow
    fields = [(name, Any, None) for name in leaves]
    return cast("type[ExportRow]", msgspec.defstruct("MoreRow", fields, bases=(ExportRow,)))


RESERVED_COLUMNS = frozenset(
    (
        *(*VectorRow.__struct_fields__, *MORE_COLUMNS),
        *("finish_reasons", "all_tool_calls", "all_reasoning"),
    )
)
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
    leaves: tuple[str, ...] = (),
) -> Iterator[ExportRow]:
    """Adds to each row where it comes from; `rows` come in order of index.

    Args:
        rows: What was computed.
        plan: What must be there.
        model: What answered.
        revision: The model's revision.
        rates: What a second of engine time costs.
        vectors: Whether the rows are those of an embedding task.
        leaves: Which of `MORE_COLUMNS` they have.
    """
    kind = row_kind(leaves)
    starts = [shard.start for shard in plan.shards]
    for row in rows:
        prompt = prompt_text(row.prompt)
        place = row.index if row.place < 0 else row.place
        exported = kind(
            plan.task_id,
            plan.shards[bisect_right(starts, place) - 1].index,
            row.index,
            prompt,
            hashlib.sha256(prompt.encode()).hexdigest(),
            row.output,
            row.outputs,
            row.tool_calls,
            row.reasoning,
            row.finish_reason,
            row.stop or None,
            row.steps if row.stop else None,
            row.failed_calls if row.stop else None,
            row.error,
            model,
            row.revision or revision,
            row.engine,
            row.worker,
            row.attempt,
            row.prompt_tokens,
            row.completion_tokens,
            row.reasoning_tokens,
            row.latency_s,
            row.cached_tokens,
            row.engine_s,
            row.energy_j,
            row.gpu_s,
            rates.of_row(row),
            row.reused or None,
            row.saved_s,
            row.custom_id,
            *(getattr(row, name) for name in leaves),
        )
        yield _with_vector(exported, row) if vectors else exported


def _with_vector(exported: ExportRow, row: OutputRow) -> VectorRow:
    return VectorRow(*msgspec.structs.astuple(exported), embedding=row.embedding)
