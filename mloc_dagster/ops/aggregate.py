"""The op that turns finished shards, or a training, into one result with its metadata."""

import base64
import hashlib
import io
import re
from collections.abc import Sequence
from itertools import pairwise

import dagster as dg

from mloc_dagster.errors import MlocError
from mloc_dagster.executors import OpenTask, ShardReport, archive_folder, open_task, worker_name
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.io import TaskRef
from mloc_dagster.ops.tracking import report_figures
from mloc_dagster.ops.viewer_link import viewer_metadata
from mloc_dagster.planning import Expectation, Plan
from mloc_dagster.results import (
    ARCHIVES_NAME,
    TaskSummary,
    TrainingSummary,
    aggregate_rows,
    compared,
    read_training,
    write_training_result,
)
from mloc_dagster.schema import TrainingSpec, Usage, canonical_json


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
        **_scores_metadata(summary),
        "prompt_tokens": dg.MetadataValue.int(usage.prompt_tokens),
        "completion_tokens": dg.MetadataValue.int(usage.completion_tokens),
        **_usage_metadata(usage),
        "tokens_per_s": dg.MetadataValue.float(round(summary.tokens_per_s, 1)),
        "task_id": dg.MetadataValue.text(summary.task_id),
        "path": dg.MetadataValue.path(path),
        **viewer_metadata(summary.task_id),
        "preview": dg.MetadataValue.md(_preview(summary)),
        **pictures,
    }


def _scores_metadata(summary: TaskSummary) -> dict[str, dg.MetadataValue]:
    """Returns what the task's evaluation measured; Dagster draws it over materializations."""
    if summary.scores is None:
        return {}
    figures = summary.scores.metrics.items()
    shown = {f"evaluation/{name}": dg.MetadataValue.float(value) for name, value in figures}
    scored = dg.MetadataValue.md(_facts_table("metric", "rows with a score", summary.scores.scored))
    return {**shown, "evaluation/scored": scored}


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


SHOWN_SERIES = 6
_REWARDING = ("loss", "objective/score", "reward", "rewards/accuracies", "accuracy", "entropy")


def training_output(context: dg.OpExecutionContext, opened: OpenTask) -> dg.Output[TaskRef]:
    """Writes `responses.json`, and an archive if somebody needs one; reports what was measured."""
    folder = opened.folder
    summary = read_training(folder)
    evaluation = opened.training_spec.evaluation
    archive = None
    if summary.final and archive_wanted(opened):
        archive = archive_folder(folder, summary.final, f"{ARCHIVES_NAME}/{summary.final}.zip")
    write_training_result(
        folder,
        summary,
        worker_id=worker_name(),
        archive=archive,
        metadata={"template": opened.record.template_name, "node": opened.task.name},
    )
    reported = {}
    if evaluation is not None:
        before = {f"before/{name}": value for name, value in (summary.before or {}).items()}
        figures = {**before, **(summary.after or {})}
        reported = report_figures(
            context, opened, evaluation.report_to, figures, summary.finished_at
        )
    return dg.Output(
        TaskRef(task_id=summary.task_id, node=opened.task.name, rows=summary.dataset_size),
        metadata={**training_metadata(opened, summary), **reported},
        data_version=dg.DataVersion(f"{summary.data_version[:16]}-{summary.steps}"),
    )


def archive_wanted(opened: OpenTask) -> bool:
    """Returns whether the template lists `archives`, or a later stage reads the archive's place."""
    if any(each.split("/")[0] == ARCHIVES_NAME for each in opened.task.spec.output.artifacts):
        return True
    node = re.escape(opened.task.name)
    document = str(opened.record.template)
    return re.search(rf"\b{node}\.result\.final_\w+_archive_", document) is not None


def training_metadata(opened: OpenTask, summary: TrainingSummary) -> dict[str, dg.MetadataValue]:
    """Returns what the asset's page shows: curve, figures, arguments, where it comes from."""
    arguments = opened.training_spec.training.model_dump(mode="json", exclude_unset=True)
    found: dict[str, dg.MetadataValue] = {
        "task_id": dg.MetadataValue.text(summary.task_id),
        "path": dg.MetadataValue.path(opened.folder.url),
        **viewer_metadata(summary.task_id),
        "method": dg.MetadataValue.text(summary.task_type),
        "parent_model": dg.MetadataValue.text(summary.model),
        "data": dg.MetadataValue.text(summary.source),
        "data_version": dg.MetadataValue.text(summary.data_version),
        "dagster/row_count": dg.MetadataValue.int(summary.dataset_size),
        "bad_rows": dg.MetadataValue.int(summary.bad_rows),
        "steps": dg.MetadataValue.int(summary.steps),
        "seconds": dg.MetadataValue.float(summary.seconds),
        "arguments": dg.MetadataValue.md(_facts_table("argument", "value", arguments)),
        "metrics": dg.MetadataValue.md(_facts_table("metric", "value", summary.metrics)),
    }
    if summary.after:
        found["evaluation"] = dg.MetadataValue.md(_evaluation(summary))
    if len(summary.series("loss")) > 1:
        found["curves"] = dg.MetadataValue.md(curves_image(summary))
    return found


def _facts_table(first: str, second: str, values: dict) -> str:
    lines = [f"| {first} | {second} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {_shown(each)} |" for name, each in values.items())])


def _evaluation(summary: TrainingSummary) -> str:
    lines = ["| metric | before | after |", "|---|---|---|"]
    for name, (before, after) in compared(summary.before, summary.after).items():
        lines.append(f"| {name} | {'' if before is None else _shown(before)} | {_shown(after)} |")
    return "\n".join(lines + ([f"\n{summary.gate}"] if summary.gate else []))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def curves_image(summary: TrainingSummary) -> str:
    """Returns what was logged over the steps as a Markdown image, the picture in the text."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in _REWARDING if len(summary.series(name)) > 1][:SHOWN_SERIES]
    figure = Figure(figsize=(6, 2.0 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names, start=1):
        axes = figure.add_subplot(len(names), 1, place)
        steps, values = zip(*summary.series(name), strict=True)
        axes.plot(steps, values)
        axes.set_ylabel(name)
        if place == len(names):
            axes.set_xlabel("step")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90)
    encoded = base64.b64encode(picture.getvalue()).decode()
    return f"![what was logged over the steps](data:image/png;base64,{encoded})"


@dg.op(
    name="aggregate",
    ins={"reports": dg.In(list[ShardReport], description="One per shard.")},
    out=dg.Out(TaskRef, description="The task whose responses are complete."),
    description="Checks that every row of the plan is there, and writes responses.json.",
)
def aggregate_op(context: dg.OpExecutionContext, reports: list[ShardReport]) -> dg.Output[TaskRef]:
    """Aggregates a task; see `results.aggregate`."""
    opened = open_task(reports[0].task_id)
    if isinstance(opened.task.spec, TrainingSpec):
        return training_output(context, opened)
    plan = opened.plan()
    try:
        summary = aggregate_rows(
            opened.folder,
            plan,
            model=opened.model_name,
            revision=opened.model_revision,
            worker_id=worker_name(),
            started_at=min(report.started_at for report in reports),
            error_budget=opened.spec.error_budget,
            rates=opened.rates,
            evaluation=opened.spec.evaluation,
            metadata={"template": opened.record.template_name, "node": opened.task.name},
        )
    except MlocError as error:
        raise as_dagster(error) from error
    reported = {}
    if opened.spec.evaluation is not None and summary.scores is not None:
        trackers, figures = opened.spec.evaluation.report_to, summary.scores.metrics
        reported = report_figures(context, opened, trackers, figures, summary.finished_at)
    return dg.Output(
        TaskRef(task_id=plan.task_id, node=opened.task.name, rows=summary.rows),
        metadata={
            **responses_metadata(summary, opened.folder.url),
            **plan_metadata(plan, summary.usage, reports),
            **reported,
        },
        data_version=dg.DataVersion(data_version(opened, plan)),
    )


def data_version(opened: OpenTask, plan: Plan) -> str:
    """Returns what identifies the responses: their input, their task and their seed."""
    blocks = {"model", opened.spec.block_name, "evaluation"}
    aside = {"evaluation": {"report_to"}}  # says nothing of the responses
    spec = opened.spec.model_dump(mode="json", include=blocks, exclude=aside)
    known = canonical_json([plan.data_version, plan.seed, spec])
    return hashlib.sha256(known.encode()).hexdigest()[:16]
