"""What Dagster shows of a task's result.

Figures whose course over materializations says something are numbers, since Dagster draws a plot
of each number; the others stand together in a table. Tables and charts are kept short enough to be
shown where they stand (`charts.INLINE_CHARACTERS`); the viewer has the rest.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

import dagster as dg

from mloc_dagster.executors import OpenTask, read_pinned
from mloc_dagster.ops.charts import INLINE_CHARACTERS, bar_chart, line_chart, rank_chart
from mloc_dagster.ops.viewer_link import viewer_metadata
from mloc_dagster.planning import Expectation, Plan
from mloc_dagster.results import (
    Ranking,
    Scores,
    TaskSummary,
    TrainingSummary,
    compared,
    read_summary,
    read_training,
)
from mloc_dagster.schema import IndexSpec, TrainingSpec, Usage, canonical_json

ShardSeconds = Sequence[float | None]
"""What computing each shard took, loading aside; None for one that was not computed in one go."""


def result_metadata(opened: OpenTask, shard_seconds: ShardSeconds) -> dict[str, dg.MetadataValue]:
    """Returns what the page of a task's asset shows.

    Args:
        opened: The task; all that it computes is there.
        shard_seconds: What its shards took.
    """
    if isinstance(opened.task.spec, TrainingSpec):
        return training_metadata(opened, read_training(opened.folder))
    summary, plan = read_summary(opened.folder), opened.plan()
    return {
        **responses_metadata(summary, opened.folder.url),
        **_index_metadata(opened),
        **plan_metadata(plan, summary.usage, shard_seconds),
    }


def _index_metadata(opened: OpenTask) -> dict[str, dg.MetadataValue]:
    """Returns the version of an index that a task has published or searched."""
    pinned = read_pinned(opened.folder)
    if pinned is None:
        return {}
    figures = {"index/version": pinned.version, "index/removed": pinned.removed}
    return {
        "index": dg.MetadataValue.text(pinned.name),
        "index/chunks": dg.MetadataValue.int(pinned.chunks),
        **{name: dg.MetadataValue.int(each) for name, each in figures.items() if each is not None},
    }


def data_version_of(opened: OpenTask) -> str:
    """Returns what identifies a result: its input, its task and its seed."""
    if isinstance(opened.task.spec, TrainingSpec):
        summary = read_training(opened.folder)
        return f"{summary.data_version[:16]}-{summary.steps}"
    plan = opened.plan()
    pinned = read_pinned(opened.folder)
    if isinstance(opened.task.spec, IndexSpec) and pinned is not None:
        place = canonical_json([pinned.engine, pinned.name, pinned.url, pinned.content])
        return hashlib.sha256(place.encode()).hexdigest()[:16]
    blocks = {"model", opened.spec.block_name, "evaluation", *opened.spec.deciding}
    aside = {"evaluation": {"report_to"}}  # says nothing of the responses
    spec = opened.spec.model_dump(mode="json", include=blocks, exclude=aside)
    limits = opened.spec.budget.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    more = [limits] if limits else []
    if pinned is not None:
        more.append({"version": pinned.version, "content": pinned.content})
    known = canonical_json([plan.data_version, plan.seed, spec, *more])
    return hashlib.sha256(known.encode()).hexdigest()[:16]


def plan_metadata(
    plan: Plan, usage: Usage, shard_seconds: ShardSeconds
) -> dict[str, dg.MetadataValue]:
    """Returns prefix hits, padding and imbalance as measured, beside what the plan expected.

    Args:
        plan: The task's plan; one that only counted rows expects nothing.
        usage: What the task took.
        shard_seconds: What its shards took.
    """
    measured = shard_imbalance(shard_seconds)
    expected = plan.expected
    figures: dict[str, tuple[float | None, float | None]] = {
        "slowest shard over the mean": (measured, expected and expected.imbalance),
    }
    if expected is not None or usage.padding_tokens:
        figures["padding, share of tokens"] = (padding_waste(usage), None)
    if expected is not None:
        figures |= {
            "prefix cache hits, share": (usage.cache_hit_rate, expected.prefix_hit_share),
            "prompt tokens": (usage.prompt_tokens, expected.prompt_tokens),
            "output tokens": (usage.completion_tokens, expected.output_tokens),
        }
    shown = {name: pair for name, pair in figures.items() if any(each is not None for each in pair)}
    if not shown:
        return {}
    rows = [(name, *map(_shown, pair)) for name, pair in shown.items()]
    found: dict[str, dg.MetadataValue] = {
        "plan": dg.MetadataValue.md(_table(("", "measured", "planned"), rows))
    }
    if expected is not None:
        found["shards"] = dg.MetadataValue.md(_shards(plan, expected, shard_seconds))
    return found


def shard_imbalance(shard_seconds: ShardSeconds) -> float | None:
    """Returns the slowest shard's seconds over the mean; 1 is perfect.

    None for a single shard, and if one was not computed in one go.
    """
    seconds = [each for each in shard_seconds if each is not None]
    if len(seconds) < 2 or len(seconds) < len(shard_seconds):
        return None
    mean = sum(seconds) / len(seconds)
    return max(seconds) / mean if mean > 0 else None


def padding_waste(usage: Usage) -> float:
    """Returns padding as a share of the tokens of computed rows, read, written and padded.

    Prompt tokens that were in the prefix cache count as read.
    """
    computed = usage.total_tokens - usage.reused_tokens + usage.padding_tokens
    return usage.padding_tokens / computed if computed > 0 else 0.0


def _shards(plan: Plan, expected: Expectation, shard_seconds: ShardSeconds) -> str:
    heads = ("shard", "rows", "prompt tokens", "of them cached", "output tokens", "cost", "seconds")
    lines = [
        (
            shard.index,
            shard.rows,
            load.prompt_tokens,
            load.cached_tokens,
            load.output_tokens,
            f"{load.cost:.0f}",
            "" if took is None else f"{took:.2f}",
        )
        for shard, load, took in zip(plan.shards, expected.shards, shard_seconds, strict=True)
    ]
    return (
        f"Prompt tokens {expected.tokens}. Cost: {expected.prefill:g} a prompt token that is not "
        f"in the prefix cache, {expected.decode:g} a token written.\n\n" + _table(heads, lines)
    )


# Fewer show no distribution.
_ROWS_OF_A_HISTOGRAM = 10


def responses_metadata(summary: TaskSummary, path: str) -> dict[str, dg.MetadataValue]:
    """Returns rows, errors, tokens, speed, a preview and, of many rows, the latency histogram."""
    pictures: dict[str, dg.MetadataValue] = {}
    if summary.rows >= _ROWS_OF_A_HISTOGRAM:
        edges, counts = summary.latency.edges_s, summary.latency.counts
        chart = bar_chart("Rows by latency", "seconds a row (log scale)", edges, counts)
        pictures["latency"] = dg.MetadataValue.md(chart)
    return {
        **viewer_metadata(summary.task_id),
        "preview": dg.MetadataValue.md(_preview(summary)),
        "dagster/row_count": dg.MetadataValue.int(summary.rows),
        "errors": dg.MetadataValue.int(summary.errors),
        "tokens_per_s": dg.MetadataValue.float(round(summary.tokens_per_s, 1)),
        **{name: dg.MetadataValue.int(number) for name, number in summary.counts.items()},
        **_scores_metadata(summary),
        **_cost_metadata(summary.usage),
        **_budget_metadata(summary),
        "usage": dg.MetadataValue.md(_usage(summary)),
        **pictures,
        "model": dg.MetadataValue.text(summary.model),
        "task_id": dg.MetadataValue.text(summary.task_id),
        "path": dg.MetadataValue.path(path),
    }


def _scores_metadata(summary: TaskSummary) -> dict[str, dg.MetadataValue]:
    if summary.scores is None:
        return {}
    shown = scores_metadata(summary.scores)
    return {f"evaluation/{name}": value for name, value in shown.items()}


def scores_metadata(scores: Scores) -> dict[str, dg.MetadataValue]:
    """Returns what an evaluation came to; Dagster draws its metrics over materializations."""
    found: dict[str, dg.MetadataValue] = {
        name: dg.MetadataValue.float(value) for name, value in scores.metrics.items()
    }
    scored = _table(("metric", "rows with a score"), scores.scored.items())
    found["scored"] = dg.MetadataValue.md(scored)
    if scores.gate:
        found["gate"] = dg.MetadataValue.text(scores.gate)
    if scores.worst:
        found["worst_rows"] = dg.MetadataValue.md(_worst(scores))
    return found if scores.ranking is None else found | _ranking_metadata(scores.ranking)


def _ranking_metadata(ranking: Ranking) -> dict[str, dg.MetadataValue]:
    """Returns recall over k, and the ranks of the first relevant passage, as pictures."""
    first = sum(ranking.first_ranks[:1])
    title = f"First relevant at 1: {first:,} of {ranking.rows:,} rows; none: {ranking.missed:,}"
    found: dict[str, dg.MetadataValue] = {
        "ranks": dg.MetadataValue.md(rank_chart(title, ranking.first_ranks))
    }
    if len(ranking.recall) > 1:
        chart = line_chart("recall@k", "k", ranking.recall)
        found["recall"] = dg.MetadataValue.md(chart)
    return found


def _cost_metadata(usage: Usage) -> dict[str, dg.MetadataValue]:
    return {} if usage.cost is None else {"cost": dg.MetadataValue.float(usage.cost)}


def _budget_metadata(summary: TaskSummary) -> dict[str, dg.MetadataValue]:
    if summary.budget is None:
        return {}
    return {"budget": dg.MetadataValue.text(str(summary.budget))}


def _usage(summary: TaskSummary) -> str:
    """Returns a table of what the task took; figures that nothing measured are left out."""
    usage = summary.usage
    figures: dict[str, float | None] = {
        "prompt tokens": usage.prompt_tokens,
        "of them from the prefix cache": usage.cached_tokens or None,
        "tokens written": usage.completion_tokens,
        "of them thoughts": usage.reasoning_tokens or None,
        "rows with an empty output": summary.empty_outputs or None,
        "rows answered as an equal row of the task": usage.reused_rows.task or None,
        "rows answered from the row cache": usage.reused_rows.cache or None,
        "tokens that were not computed again": usage.reused_tokens or None,
        "seconds that this saved": usage.saved_seconds or None,
        "seconds of engines": usage.engine_seconds,
        "seconds of GPUs": usage.gpu_seconds or None,
        "energy, joules": usage.energy_joules,
    }
    known = ((name, _shown(value)) for name, value in figures.items() if value is not None)
    return _table(("usage", ""), known)


def _preview(summary: TaskSummary) -> str:
    """Returns the first rows, as many and as much of each as is shown where it stands."""
    rows = [(each.index, each.prompt, each.error or each.output) for each in summary.preview]
    return _fitted(("index", "prompt", "output"), rows, _FEW_ROWS)


def _worst(scores: Scores) -> str:
    """Returns the rows with the lowest scores, as much of each as is shown where it stands."""
    metrics = [*scores.scored][:_METRICS_OF_A_ROW]
    rows = [
        (each.index, *(_shown(each.scores.get(name)) for name in metrics), each.prompt,
         each.expected, each.found)
        for each in scores.worst
    ]  # fmt: skip
    return _fitted(("index", *metrics, "prompt", "expected", "found"), rows, len(rows))


_METRICS_OF_A_ROW = 3


_WIDTHS, _FEW_ROWS = (160, 80, 40, 20, 12), 3


def _fitted(heads: Sequence[str], rows: Sequence[Sequence[object]], fewest: int) -> str:
    """Returns a table that is shown where it stands, of rows' texts as much as there is room for.

    Args:
        heads: Of the columns.
        rows: Their cells.
        fewest: Rows that are shown in any case, however short.
    """
    text = ""
    for width in _WIDTHS:
        lines = [[_cell(str(each), width) for each in row] for row in rows]
        while len(text := _table(heads, lines)) >= INLINE_CHARACTERS and len(lines) > fewest:
            lines.pop()
        if len(text) < INLINE_CHARACTERS:
            break
    return text


def _cell(text: str, most: int) -> str:
    """Returns a text of a row as plain text in a table: it is no markup, whatever it holds."""
    shown = text if len(text) <= most else text[: most - 1] + "…"
    return _MARKUP.sub(r"\\\g<0>", " ".join(shown.split()))


_MARKUP = re.compile(r"[\\|<\[`*_]")


SHOWN_SERIES = 6
_REWARDING = ("loss", "objective/score", "reward", "rewards/accuracies", "accuracy", "entropy")


def training_metadata(opened: OpenTask, summary: TrainingSummary) -> dict[str, dg.MetadataValue]:
    """Returns what the asset's page shows: curves, figures, arguments, where it comes from."""
    arguments = opened.training_spec.training.model_dump(mode="json", exclude_unset=True)
    found: dict[str, dg.MetadataValue] = dict(viewer_metadata(summary.task_id))
    if summary.after:
        found["evaluation"] = dg.MetadataValue.md(_evaluation(summary))
    for name in curves_of(summary):
        chart = line_chart(name, "step", summary.series(name))
        found[f"curve/{name}"] = dg.MetadataValue.md(chart)
    facts = {
        "method": summary.task_type,
        "parent model": summary.model,
        "data": summary.source,
        "data version": summary.data_version[:16],
        "rows that could not be read": summary.bad_rows,
        "steps": summary.steps,
    }
    return {
        **found,
        **{f"after/{name}": dg.MetadataValue.float(each) for name, each in _after(summary)},
        "dagster/row_count": dg.MetadataValue.int(summary.dataset_size),
        "seconds": dg.MetadataValue.float(round(summary.seconds, 3)),
        "training": dg.MetadataValue.md(_facts_table("training", "", facts)),
        "arguments": dg.MetadataValue.md(_facts_table("argument", "value", arguments)),
        "metrics": dg.MetadataValue.md(_facts_table("metric", "value", summary.metrics)),
        "task_id": dg.MetadataValue.text(summary.task_id),
        "path": dg.MetadataValue.path(opened.folder.url),
    }


def curves_of(summary: TrainingSummary) -> list[str]:
    """Returns which figures are drawn over the steps: the telling ones that were logged often."""
    return [name for name in _REWARDING if len(summary.series(name)) > 1][:SHOWN_SERIES]


def _after(summary: TrainingSummary) -> Iterable[tuple[str, float]]:
    return (summary.after or {}).items()


def _facts_table(first: str, second: str, values: Mapping[str, object]) -> str:
    return _table((first, second), ((name, _shown(each)) for name, each in values.items()))


def _evaluation(summary: TrainingSummary) -> str:
    lines = [
        (name, _shown(before), _shown(after))
        for name, (before, after) in compared(summary.before, summary.after).items()
    ]
    table = _table(("metric", "before", "after"), lines)
    return f"{table}\n\n{summary.gate}" if summary.gate else table


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
