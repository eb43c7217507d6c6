"""What an asset's page shows of a task's plan, and how it turned out."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from mloc_dagster.executors.shard_run import ShardReport
from mloc_dagster.planning.plan import Expectation, Plan
from mloc_dagster.schema.result import Usage


def plan_metadata(
    plan: Plan, usage: Usage, reports: Sequence[ShardReport]
) -> dict[str, dg.MetadataValue]:
    """Returns prefix hits, padding and imbalance as measured, beside what the plan expected.

    Args:
        plan: The task's plan; one that only counted rows expects nothing.
        usage: What the task took.
        reports: One per shard.
    """
    measured = shard_imbalance(reports)
    found = {} if measured is None else {"shard_imbalance": _share(measured)}
    expected = plan.expected
    if expected is not None or usage.padding_tokens:
        found["padding_waste"] = _share(padding_waste(usage))
    if expected is None:
        return found
    return {
        **found,
        "shard_imbalance_planned": _share(expected.imbalance),
        "prefix_hit_rate": _share(usage.cache_hit_rate),
        "prefix_hit_rate_planned": _share(expected.prefix_hit_share),
        "prompt_tokens_planned": dg.MetadataValue.int(expected.prompt_tokens),
        "output_tokens_planned": dg.MetadataValue.int(expected.output_tokens),
        "plan": dg.MetadataValue.md(_table(plan, expected, reports)),
    }


def shard_imbalance(reports: Sequence[ShardReport]) -> float | None:
    """Returns the slowest shard's seconds over the mean, loading aside; 1 is perfect.

    None if a shard was not computed in one go: what its last attempt took says nothing.
    """
    if len(reports) < 2 or any(report.rows_resumed for report in reports):
        return None
    seconds = [report.seconds - report.load_seconds for report in reports]
    mean = sum(seconds) / len(seconds)
    return max(seconds) / mean if mean > 0 else None


def padding_waste(usage: Usage) -> float:
    """Returns padding as a share of the tokens of computed rows, read, written and padded.

    Prompt tokens that were in the prefix cache count as read.
    """
    computed = usage.total_tokens - usage.reused_tokens + usage.padding_tokens
    return usage.padding_tokens / computed if computed > 0 else 0.0


def _table(plan: Plan, expected: Expectation, reports: Sequence[ShardReport]) -> str:
    lines = [
        f"Prompt tokens {expected.tokens}. Cost: {expected.prefill:g} a prompt token that is not "
        f"in the prefix cache, {expected.decode:g} a token written.",
        "",
        "| shard | rows | prompt tokens | of them cached | output tokens | cost | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    seconds = {report.shard: report.seconds - report.load_seconds for report in reports}
    for shard, load in zip(plan.shards, expected.shards, strict=True):
        took = f"{seconds[shard.index]:.2f}" if shard.index in seconds else ""
        lines.append(
            f"| {shard.index} | {shard.rows} | {load.prompt_tokens} | {load.cached_tokens} "
            f"| {load.output_tokens} | {load.cost:.0f} | {took} |"
        )
    return "\n".join(lines)


def _share(value: float) -> dg.MetadataValue:
    return dg.MetadataValue.float(round(value, 4))
