"""The last op of a task: judges its result, writes its files, and delivers them."""

from collections.abc import Iterator, Mapping
from functools import cache

import dagster as dg

from mloc_dagster.errors import MlocError
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, publish
from mloc_dagster.executors import OpenTask, open_task
from mloc_dagster.ops.checks import Checks, Verdict, judge
from mloc_dagster.ops.columns import written_columns
from mloc_dagster.ops.failures import as_dagster
from mloc_dagster.ops.io import IO_MANAGER_KEY, AggregatedTask, TaskRef
from mloc_dagster.ops.metadata import data_version_of, result_metadata, scores_metadata
from mloc_dagster.ops.run_tags import process_of
from mloc_dagster.ops.tracking import report_scores
from mloc_dagster.results import (
    DeliveryReport,
    Manifest,
    artifact_names,
    deliver,
    export_results,
    read_summary,
    read_training,
    write_manifest,
)
from mloc_dagster.schema import RowSpec, TrainingSpec

_Event = dg.Output[TaskRef] | dg.AssetCheckResult | dg.AssetObservation | dg.AssetMaterialization

RESULT = "result"
"""The op's output that is the asset; the others are its checks, by their names."""

_DATA_VERSION = "dagster/data_version"
"""The tag that says the version of what an event without an output of its own tells of."""


@cache
def export_op(checks: Checks) -> dg.OpDefinition:
    """Returns the op that ends a task whose result has these checks."""

    @dg.op(
        name=f"mloc_export_{checks.name}",
        ins={"task": dg.In(AggregatedTask)},
        out={
            RESULT: dg.Out(
                TaskRef,
                io_manager_key=IO_MANAGER_KEY,
                description="The task whose files are there.",
            ),
            # Dagster makes outputs of a check's results; they hold nothing.
            **{name: dg.Out(dg.Nothing, is_required=False) for name in checks.texts},
        },
        description="Judges the result; writes its files and the manifest, and delivers them.",
    )
    def export(context: dg.OpExecutionContext, task: AggregatedTask) -> Iterator[_Event]:
        yield from export_task(context, task)

    return export


def export_task(context: dg.OpExecutionContext, task: AggregatedTask) -> Iterator[_Event]:
    """Yields the asset and the results of its checks.

    A result that is refused is no materialization: nothing reads it. It is an observation,
    so that the asset's page shows what was computed, and the step fails with the problems.
    Dagster's own error would say only how the checks are called, and it is what reaches
    everybody who reads why a task failed.

    Raises:
        dg.Failure: If the result is refused, or cannot be written or delivered.
    """
    opened = open_task(task.task_id)
    metadata = result_metadata(opened, task.shard_seconds) | report_scores(context, opened)
    # `mloc run` says itself how to go on.
    again = f"mloc retry --failed-rows {task.task_id}" * (process_of(context.run.tags) is None)
    yield from _evaluation(context, opened)
    verdicts = judge(opened, again=again)
    problems = [each.problem for each in verdicts.values() if each.problem]
    if problems:
        yield dg.AssetObservation(context.asset_key, metadata=metadata)
        yield from _check_results(verdicts)
        raise dg.Failure(description="; ".join(problems), allow_retries=False)
    try:
        manifest, delivered = _write_and_deliver(context, opened)
    except MlocError as error:
        raise as_dagster(error) from error
    publish(
        TaskEvent(
            type=TaskEventType.TASK_SUCCEEDED,
            task_id=task.task_id,
            run_id=context.run_id,
            node=task.node,
            payload=Payload(rows=task.rows),
        )
    )
    if isinstance(opened.task.spec, RowSpec):
        metadata |= written_columns(opened, context.assets_def.keys_by_input_name)
    metadata["files"] = dg.MetadataValue.md(_files(manifest))
    if delivered.items:
        metadata["delivered"] = dg.MetadataValue.md(_deliveries(delivered))
    yield dg.Output(
        task.ref(),
        RESULT,
        metadata=metadata,
        data_version=dg.DataVersion(data_version_of(opened)),
    )
    yield from _check_results(verdicts)


def evaluation_key(result: dg.AssetKey) -> dg.AssetKey:
    """Returns the key of the evaluation of a result: `answer_evaluation` of `answer_responses`."""
    *place, name = result.path
    return dg.AssetKey([*place, f"{name.removesuffix('responses')}evaluation"])


def _evaluation(
    context: dg.OpExecutionContext, opened: OpenTask
) -> Iterator[dg.AssetMaterialization]:
    """Yields what the evaluation of a result came to, of one that its gate refuses as well."""
    scores = None
    if isinstance(opened.task.spec, RowSpec):
        scores = read_summary(opened.folder).scores
    if scores is None:
        return
    ranged = context.has_partition_key_range or context.has_partition_key
    for partition in context.partition_keys if ranged else [None]:
        yield dg.AssetMaterialization(
            evaluation_key(context.asset_key),
            metadata=scores_metadata(scores),
            partition=partition,
            tags={_DATA_VERSION: data_version_of(opened)},
        )


def _check_results(verdicts: Mapping[str, Verdict]) -> Iterator[dg.AssetCheckResult]:
    for name, verdict in verdicts.items():
        yield dg.AssetCheckResult(
            check_name=name,
            passed=verdict.passed,
            severity=dg.AssetCheckSeverity.WARN if verdict.warning else dg.AssetCheckSeverity.ERROR,
            description=verdict.problem or verdict.warning or None,
            metadata=verdict.metadata,
        )


def _write_and_deliver(
    context: dg.OpExecutionContext, opened: OpenTask
) -> tuple[Manifest, DeliveryReport]:
    manifest = _write(opened)
    missing = {each.path for each in manifest.entries if each.status == "missing"}
    for name in sorted(missing):
        context.log.warning(f"the template asks for {name!r}, which this task did not make")
    wanted = [each.path for each in manifest.entries if each.required]
    delivered = deliver(
        opened.folder,
        opened.record.task_id,
        opened.task.spec.output.destination,
        [name for name in wanted if name not in missing],
        reach=opened.reach,
    )
    return manifest, delivered


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
        leaves=opened.spec.leaves,
    )
    report = opened.report()
    if report is not None:
        report.write_files(opened.folder, artifacts)
    return write_manifest(opened.folder, artifacts)


def _deliveries(report: DeliveryReport) -> str:
    lines = ["| file | to | tries |", "|---|---|---|"]
    lines += [f"| {each.name} | {each.target} | {each.attempts} |" for each in report.items]
    return "\n".join(lines)


def _files(manifest: Manifest) -> str:
    lines = ["| file | bytes | sha256 |", "|---|---|---|"]
    lines += [
        f"| {each.path} | {each.size} | {(each.sha256 or '')[:12]} |" for each in manifest.entries
    ]
    return "\n".join(lines)
