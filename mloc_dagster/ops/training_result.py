"""The end of a training within Dagster: its result, its pictures, its figures."""

import base64
import io
import re

import dagster as dg

from mloc_dagster.executors.archives import archive_folder
from mloc_dagster.executors.open_task import OpenTask
from mloc_dagster.executors.shard_run import worker_name
from mloc_dagster.ops.references import TaskRef
from mloc_dagster.results.training_result import ARCHIVES_NAME, write_training_result
from mloc_dagster.results.training_summary import TrainingSummary, compared, read_training

SHOWN_SERIES = 6
_REWARDING = ("loss", "objective/score", "reward", "rewards/accuracies", "accuracy", "entropy")


def training_output(opened: OpenTask) -> dg.Output[TaskRef]:
    """Writes `responses.json`, and an archive if somebody needs one."""
    folder = opened.folder
    summary = read_training(folder)
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
    return dg.Output(
        TaskRef(task_id=summary.task_id, node=opened.task.name, rows=summary.dataset_size),
        metadata=training_metadata(opened, summary),
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
        "method": dg.MetadataValue.text(summary.task_type),
        "parent_model": dg.MetadataValue.text(summary.model),
        "data": dg.MetadataValue.text(summary.source),
        "data_version": dg.MetadataValue.text(summary.data_version),
        "dagster/row_count": dg.MetadataValue.int(summary.dataset_size),
        "bad_rows": dg.MetadataValue.int(summary.bad_rows),
        "steps": dg.MetadataValue.int(summary.steps),
        "seconds": dg.MetadataValue.float(summary.seconds),
        "arguments": dg.MetadataValue.md(_table("argument", "value", arguments)),
        "metrics": dg.MetadataValue.md(_table("metric", "value", summary.metrics)),
    }
    if summary.after:
        found["evaluation"] = dg.MetadataValue.md(_evaluation(summary))
    if len(summary.series("loss")) > 1:
        found["curves"] = dg.MetadataValue.md(curves_image(summary))
    return found


def _table(first: str, second: str, values: dict) -> str:
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
