"""What every export has for a row: the input, the output, and where they come from."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator

import msgspec

from mloc_dagster.planning.plan import Plan
from mloc_dagster.results.rows import OutputRow, Prompt


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
        revision: Which revision of it.
        engine: What computed it, with version.
        worker: Who computed it.
        attempt: The shard's attempt that computed it, from 1.
        prompt_tokens: Tokens read.
        completion_tokens: Tokens written.
        latency_s: Seconds from the row's start to its end.
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


def prompt_text(prompt: Prompt) -> str:
    """Returns the prompt as one string: chat messages as the JSON text of their list."""
    return prompt if isinstance(prompt, str) else msgspec.json.encode(prompt).decode()


def export_rows(
    rows: Iterator[OutputRow], plan: Plan, model: str, revision: str | None
) -> Iterator[ExportRow]:
    """Adds to each row where it comes from; `rows` come in order of index."""
    starts = [shard.start for shard in plan.shards]
    for row in rows:
        prompt = prompt_text(row.prompt)
        yield ExportRow(
            plan.task_id,
            plan.shards[bisect_right(starts, row.index) - 1].index,
            row.index,
            prompt,
            hashlib.sha256(prompt.encode()).hexdigest(),
            row.output,
            row.outputs,
            row.finish_reason,
            row.error,
            model,
            revision,
            row.engine,
            row.worker,
            row.attempt,
            row.prompt_tokens,
            row.completion_tokens,
            row.latency_s,
        )
