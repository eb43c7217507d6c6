"""What an asset's page shows of a task's result."""

from __future__ import annotations

import base64
import io
from itertools import pairwise

import dagster as dg

from mloc_dagster.results.aggregate import TaskSummary
from mloc_dagster.schema.result import Usage

# Fewer show no distribution, and drawing takes as long as all else in a small task.
_ROWS_OF_A_HISTOGRAM = 10


def responses_metadata(summary: TaskSummary, path: str) -> dict[str, dg.MetadataValue]:
    """Returns rows, errors, tokens, speed, a preview and, of many rows, the latency histogram."""
    usage = summary.usage
    pictures: dict[str, dg.MetadataValue] = {}
    if summary.rows >= _ROWS_OF_A_HISTOGRAM:
        pictures["latency"] = dg.MetadataValue.md(latency_image(summary))
    return {
        "dagster/row_count": dg.MetadataValue.int(summary.rows),
        "errors": dg.MetadataValue.int(summary.errors),
        "empty_outputs": dg.MetadataValue.int(summary.empty_outputs),
        "model": dg.MetadataValue.text(summary.model),
        "prompt_tokens": dg.MetadataValue.int(usage.prompt_tokens),
        "completion_tokens": dg.MetadataValue.int(usage.completion_tokens),
        **_usage_metadata(usage),
        "tokens_per_s": dg.MetadataValue.float(round(summary.tokens_per_s, 1)),
        "task_id": dg.MetadataValue.text(summary.task_id),
        "path": dg.MetadataValue.path(path),
        "preview": dg.MetadataValue.md(_preview(summary)),
        **pictures,
    }


def _usage_metadata(usage: Usage) -> dict[str, dg.MetadataValue]:
    """Returns what the task took; figures that nothing measured are left out."""
    figures: dict[str, float | None] = {
        "cached_tokens": usage.cached_tokens or None,
        "cache_hit_rate": usage.cache_hit_rate if usage.cached_tokens else None,
        "rows_reused_in_task": usage.reused_rows.task or None,
        "rows_reused_from_cache": usage.reused_rows.cache or None,
        "reused_tokens": usage.reused_tokens or None,
        "saved_seconds": usage.saved_seconds or None,
        "engine_seconds": usage.engine_seconds,
        "gpu_seconds": usage.gpu_seconds or None,
        "energy_joules": usage.energy_joules,
        "cost": usage.cost,
    }
    return {
        name: dg.MetadataValue.int(value)
        if isinstance(value, int)
        else dg.MetadataValue.float(value)
        for name, value in figures.items()
        if value is not None
    }


def _preview(summary: TaskSummary) -> str:
    lines = ["| index | prompt | output |", "|---|---|---|"]
    for row in summary.preview:
        prompt, output = _cell(row.prompt), _cell(row.error or row.output)
        lines.append(f"| {row.index} | {prompt} | {output} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def latency_image(summary: TaskSummary) -> str:
    """Returns the rows' latencies as a Markdown image, with the picture in the text itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    figure = Figure(figsize=(6, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    edges = summary.latency.edges_s
    widths = [right - left for left, right in pairwise(edges)]
    axes.bar(edges[:-1], summary.latency.counts, width=widths, align="edge")
    axes.set_xscale("log")
    # Plain labels: powers of ten would load a parser for formulas, which takes a second.
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("seconds per row")
    axes.set_ylabel("rows")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    encoded = base64.b64encode(picture.getvalue()).decode()
    return f"![latency of the rows](data:image/png;base64,{encoded})"
