"""A template, or a batch of small tasks, as Dagster sees it: assets, checks, a job, a schedule."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import dagster as dg

from mloc_dagster.assets.checks import row_checks, training_checks
from mloc_dagster.assets.task_graph import asset_key, job_name, task_graph
from mloc_dagster.compile import CompiledTask, CompiledTemplate
from mloc_dagster.fleet import Requirements, execution_config, fleet_tags
from mloc_dagster.ops import (
    SLO_TAG,
    BatchConfig,
    TaskRef,
    batch_shard,
    export_responses,
    hand_out,
    op_name,
    plan_batch,
    template_tags,
)
from mloc_dagster.schema import ModelSpec, Retries, TrainingSpec
from mloc_dagster.services import STACK

if TYPE_CHECKING:
    from mloc_dagster.services import UnresolvedAssetJobDefinition


_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")

_TAG_LENGTH = 63
"""Of the name and of the value of a tag of Dagster's, at most."""


def task_assets(
    compiled: CompiledTemplate, node: CompiledTask
) -> list[dg.AssetsDefinition | dg.AssetChecksDefinition]:
    """Builds the assets and checks of one task of a template."""
    trains = isinstance(node.task.spec, TrainingSpec)
    return [
        _result(compiled, node),
        training_checks(compiled, node) if trains else row_checks(compiled, node),
        _export(compiled, node),
    ]


def result_key(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetKey:
    """Returns the key of what a task computes: `checkpoint` of a training, else `responses`."""
    trains = isinstance(node.task.spec, TrainingSpec)
    return asset_key(compiled, node.task.name, "checkpoint" if trains else "responses")


def _result(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetsDefinition:
    graph = task_graph(compiled, node)
    assets = dg.AssetsDefinition.from_graph(
        graph,
        keys_by_input_name={
            f"in_{op_name(each)}": asset_key(compiled, each, "export")
            for each in node.task.depends_on
        },
        keys_by_output_name={"result": result_key(compiled, node)},
        group_name=op_name(compiled.metadata.name),
    )
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            description=_description(compiled, node),
            kinds=_kinds(node),
            owners=_owners(compiled),
            tags=_tags(compiled, node),
        )
    )


def _export(compiled: CompiledTemplate, node: CompiledTask) -> dg.AssetsDefinition:
    key = asset_key(compiled, node.task.name, "export")
    spec = node.task.spec
    trains = isinstance(spec, TrainingSpec)
    formats = (
        "responses.json"
        if trains
        else ", ".join(f"responses.{each}" for each in spec.output.formats)
    )

    @dg.asset(
        key=key,
        ins={"responses": dg.AssetIn(result_key(compiled, node))},
        group_name=op_name(compiled.metadata.name),
        description=f"The result as files: {formats}, and a manifest with their sha256.",
        kinds={"json"} if trains else {each for each in spec.output.formats if each != "jsonl"},
        owners=_owners(compiled),
        tags=_tags(compiled, node),
    )
    def export_asset(context: dg.AssetExecutionContext, responses: TaskRef) -> dg.Output[TaskRef]:
        return export_responses(context, responses)

    return export_asset


def _description(compiled: CompiledTemplate, node: CompiledTask) -> str:
    given = compiled.metadata.description or compiled.metadata.annotations.get("description", "")
    spec = node.task.spec
    if isinstance(spec, TrainingSpec):
        return (
            f"{given}\n\nWeights of {spec.model.source.identifier} after {spec.task_type}.".strip()
        )
    model = f" with {spec.model.source.identifier}" if isinstance(spec, ModelSpec) else ""
    return f"{given}\n\nOne output per row: {spec.task_type}{model}.".strip()


def _kinds(node: CompiledTask) -> set[str]:
    spec = node.task.spec
    if not isinstance(spec, ModelSpec | TrainingSpec):
        return {spec.task_type}
    source = {"huggingface": "huggingface"}.get(spec.model.source.type)
    return {"llm", "pytorch"} | ({source} if source else set())


def _owners(compiled: CompiledTemplate) -> list[str]:
    owner = compiled.metadata.owner
    if not owner:
        return []
    # Dagster takes a team or an address as it knows them, and refuses the whole job otherwise.
    return [owner if _EMAIL.fullmatch(owner) else "team:" + re.sub(r"[^A-Za-z0-9_.-]", "_", owner)]


def _tags(compiled: CompiledTemplate, node: CompiledTask) -> dict[str, str]:
    labels = {
        f"mloc/{op_name(name)[:_TAG_LENGTH]}": _tag_text(value)
        for name, value in compiled.metadata.labels.items()
    }
    return {"mloc/task_type": node.task.spec.task_type, **labels}


def _tag_text(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", value)[:_TAG_LENGTH]


@dataclass(frozen=True, slots=True)
class TemplateDefinitions:
    """Everything Dagster needs of one template."""

    assets: list[dg.AssetsDefinition]
    checks: list[dg.AssetChecksDefinition]
    job: "UnresolvedAssetJobDefinition"
    schedules: list[dg.ScheduleDefinition]


def template_definitions(
    compiled: CompiledTemplate, tags: Mapping[str, str] | None = None
) -> TemplateDefinitions:
    """Builds the Dagster definitions of a compiled template.

    Args:
        compiled: The template.
        tags: Tags of its runs, beyond those that all have.
    """
    built = [each for node in compiled.tasks for each in task_assets(compiled, node)]
    assets = [each for each in built if not isinstance(each, dg.AssetChecksDefinition)]
    job = dg.define_asset_job(
        job_name(compiled),
        selection=dg.AssetSelection.assets(*assets),
        description=compiled.metadata.description
        or str(compiled.metadata.annotations.get("description", "")),
        tags={**_job_tags(compiled), **(tags or {})},
        config=execution_config(),
    )
    checks = [each for each in built if isinstance(each, dg.AssetChecksDefinition)]
    return TemplateDefinitions(assets, checks, job, _schedules(compiled, job))


def _job_tags(compiled: CompiledTemplate) -> dict[str, str]:
    """Returns what the control plane needs to know of a run without its template."""
    nodes = [each.task for each in compiled.tasks]
    tags = template_tags(
        compiled.metadata.name,
        [(each.name, each.spec.task_type, each.depends_on) for each in nodes],
        owner=compiled.metadata.owner or "",
        labels=compiled.metadata.labels,
    )
    promised = [each.task.spec.slo.seconds for each in compiled.tasks if each.task.spec.slo]
    return {**tags, SLO_TAG: f"{max(promised):g}"} if promised else tags


def _schedules(
    compiled: CompiledTemplate, job: "UnresolvedAssetJobDefinition"
) -> list[dg.ScheduleDefinition]:
    if compiled.schedule is None:
        return []
    # `dagster dev` starts no schedule by itself: who tries a template out wants no run at night.
    running = compiled.schedule.enabled and STACK in os.environ
    return [
        dg.ScheduleDefinition(
            name=f"{job_name(compiled)}_schedule",
            job=job,
            cron_schedule=compiled.schedule.cron,
            execution_timezone=compiled.schedule.timezone,
            default_status=(
                dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
            ),
        )
    ]


JOB = "small_tasks"
"""The job that carries batches."""

# Not the job's name: Dagster keeps jobs, graphs and ops in one namespace.
_GRAPH = f"{JOB}__batch"


def batch_definitions() -> dg.Definitions:
    """Builds the job, and the asset with one materialization for each batch."""
    asset = dg.AssetsDefinition.from_graph(
        _graph(),
        keys_by_output_name={"result": dg.AssetKey([JOB])},
        group_name=JOB,
    ).map_asset_specs(
        lambda spec: spec.replace_attributes(
            description="Small tasks that came over the API and agree in model, engine and"
            " sampling, computed together. Each has results of its own.",
            kinds={"llm"},
        )
    )
    job = dg.define_asset_job(
        JOB,
        selection=dg.AssetSelection.assets(asset),
        description="A batch of small tasks; the API's dispatcher makes its runs.",
        config=execution_config(),
    )
    return dg.Definitions(assets=[asset], jobs=[job])


def batch_run_config(batch_id: str) -> dict[str, object]:
    """Returns the run config of a batch's run."""
    return {**execution_config(), "ops": {_GRAPH: {"config": {"batch_id": batch_id}}}}


def _graph() -> dg.GraphDefinition:
    # What a batch needs of its worker is known when it runs: its run's tags say so.
    tags = fleet_tags(Requirements(), None, Retries())

    @dg.config_mapping
    def batch_to_ops(batch: BatchConfig) -> dict[str, object]:
        config = {"config": {"batch_id": batch.batch_id}}
        return {"plan": config, "hand_out": config}

    @dg.graph(
        name=_GRAPH,
        description="Computes small tasks together, in shards, and gives each its results.",
        config=batch_to_ops,
    )
    def small_tasks() -> object:
        shards = plan_batch.alias("plan")()
        return hand_out.alias("hand_out")(
            shards.map(batch_shard.alias("run_shard").tag(tags)).collect()
        )

    return small_tasks
