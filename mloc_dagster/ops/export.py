"""Exporting and publishing a task's responses."""

import dagster as dg

from mloc_dagster.errors import MlocError
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, publish
from mloc_dagster.executors import OpenTask, open_task
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.io import TaskRef
from mloc_dagster.ops.viewer_link import viewer_metadata
from mloc_dagster.results import (
    DeliveryReport,
    Manifest,
    artifact_names,
    deliver,
    export_results,
    read_training,
    write_manifest,
)
from mloc_dagster.schema import TrainingSpec


def export_responses(context: dg.AssetExecutionContext, responses: TaskRef) -> dg.Output[TaskRef]:
    """Writes the formats asked for, then the manifest, then delivers; and says that it is done."""
    opened = open_task(responses.task_id)
    try:
        manifest = _write(opened)
        missing = {each.path for each in manifest.entries if each.status == "missing"}
        for name in sorted(missing):
            context.log.warning(f"the template asks for {name!r}, which this task did not make")
        output = opened.spec.output
        wanted = [each.path for each in manifest.entries if each.required]
        artifacts = [name for name in wanted if name not in missing]
        delivered = deliver(
            opened.folder,
            responses.task_id,
            output.destination,
            artifacts,
            reach=opened.reach,
        )
    except MlocError as error:
        raise as_dagster(error) from error
    publish(
        TaskEvent(
            type=TaskEventType.TASK_SUCCEEDED,
            task_id=responses.task_id,
            run_id=context.run.run_id,
            node=responses.node,
            payload=Payload(rows=responses.rows),
        )
    )
    return dg.Output(
        responses,
        metadata={
            "path": dg.MetadataValue.path(opened.folder.url),
            **viewer_metadata(responses.task_id),
            "files": dg.MetadataValue.md(_table(manifest)),
            "delivered": dg.MetadataValue.md(_deliveries(delivered)),
            "dagster/row_count": responses.rows,
        },
    )


def _write(opened: OpenTask) -> Manifest:
    artifacts = opened.task.spec.output.artifacts
    if isinstance(opened.task.spec, TrainingSpec):
        return write_manifest(
            opened.folder, artifact_names(artifacts, read_training(opened.folder))
        )
    export_results(
        opened.folder,
        opened.plan(),
        opened.spec.output.formats,
        model=opened.model_name,
        revision=opened.model_revision,
        rates=opened.rates,
        submitted_at=opened.record.submitted_at,
        vectors=opened.spec.leaves_vectors,
    )
    return write_manifest(opened.folder, artifacts)


def _deliveries(report: DeliveryReport) -> str:
    if not report.items:
        return "stays in its folder"
    lines = ["| file | to | tries |", "|---|---|---|"]
    lines += [f"| {each.name} | {each.target} | {each.attempts} |" for each in report.items]
    return "\n".join(lines)


def _table(manifest: Manifest) -> str:
    lines = ["| file | bytes | sha256 |", "|---|---|---|"]
    lines += [f"| {each.path} | {each.size} | {each.sha256 or ''} |" for each in manifest.entries]
    return "\n".join(lines)
