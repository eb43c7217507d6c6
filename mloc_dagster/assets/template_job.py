"""A template, or a batch of small tasks, as Dagster sees it: assets, checks, a job, a schedule."""

import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from mloc_dagster.assets.partitions import partitions_of
from mloc_dagster.assets.placement import (
    IN_LIBRARY,
    PlacedTask,
    Placement,
    job_name,
    placed_tasks,
)
from mloc_dagster.assets.task_graph import graph_inputs, task_graph
from mloc_dagster.compile import CompiledTask, CompiledTemplate
from mloc_dagster.fleet import Requirements, execution_config, fleet_tags, mloc_executor
from mloc_dagster.ops import (
    COLUMN_LINEAGE,
    COLUMN_SCHEMA,
    IO_MANAGER_KEY,
    RESULT,
    SLO_TAG,
    BatchConfig,
    batch_shard,
    column_lineage,
    dataset_of,
    evaluation_key,
    expected_schema,
    hand_out,
    mloc_io_manager,
    op_name,
    plan_batch,
    template_tags,
)
from mloc_dagster.schema import ModelSpec, Retries, RowSpec, TrainingSpec
from mloc_dagster.services import STACK

if TYPE_CHECKING:
    from mloc_dagster.services import UnresolvedAssetJobDefinition


_EMAIL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}")

_TAG_LENGTH = 63
"""Of the name and of the value of a tag of Dagster's, at most."""


def _task_asset(task: PlacedTask, schema: dg.TableSchema | None) -> dg.AssetsDefinition:
    """Builds the asset of one task of a template, with its checks."""
    compiled, node, placement = task.compiled, task.node, task.placement
    assets = _graph_asset(
        task_graph(task),
        keys_by_input_name=graph_inputs(task),
        keys_by_output_name={RESULT: task.key},
        group_name=placement.group_name or op_name(compiled.metadata.name),
        check_specs=task.check_specs(),
        partitions_def=partitions_of(compiled, placement),
        backfill_policy=placement.backfill_policy,
    )
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            description=_description(compiled, node),
            kinds=_kinds(node),
            owners=[*_owners(compiled), *placement.owners],
            tags={**_tags(compiled, node), **placement.tags},
            automation_condition=_automation(task),
            freshness_policy=placement.freshness_policy,
        ).merge_attributes(metadata={**_code_link(node), **_columns(task, schema)})
    )


def _graph_asset(graph: dg.GraphDefinition, **arguments: Any) -> dg.AssetsDefinition:
    """Returns the asset of a graph, which brings mloc's IO manager along, and no other."""
    with warnings.catch_warnings():  # `with_resources` would also bring Dagster's own `io_manager`
        warnings.simplefilter("ignore", dg.BetaWarning)
        return dg.AssetsDefinition.from_graph(
            graph, resource_defs={IO_MANAGER_KEY: mloc_io_manager}, **arguments
        )


def task_assets(
    compiled: CompiledTemplate, placement: Placement = IN_LIBRARY
) -> list[dg.AssetsDefinition]:
    """Builds the assets of all tasks of a template."""
    tasks = placed_tasks(compiled, placement)
    schemas = _schemas(tasks)
    return [_task_asset(each, schemas.get(each.node.task.name)) for each in tasks]


def source_specs(
    compiled: CompiledTemplate, placement: Placement = IN_LIBRARY
) -> list[dg.AssetSpec]:
    """Returns the external assets that the tasks of a template read, each once."""
    tasks = placed_tasks(compiled, placement)
    return list({spec.key: spec for each in tasks for spec in each.sources}.values())


def evaluation_specs(
    compiled: CompiledTemplate, placement: Placement = IN_LIBRARY
) -> list[dg.AssetSpec]:
    """Returns the assets that hold what evaluations of the tasks' rows came to.

    Nothing materializes one alone: the scores are columns of the rows, and the step that ends
    the task leaves both.
    """
    return [
        dg.AssetSpec(
            evaluation_key(task.key),
            deps=[task.key],
            description=f"Scores of the rows of `{task.key.path[-1]}`: their means, and the worst.",
            group_name=placement.group_name or op_name(compiled.metadata.name),
            kinds={"evaluation"},
            owners=[*_owners(compiled), *placement.owners],
            tags={**_tags(compiled, task.node), **placement.tags},
            partitions_def=partitions_of(compiled, placement),
        )
        for task in placed_tasks(compiled, placement)
        if isinstance(task.node.task.spec, RowSpec) and task.node.task.spec.evaluation is not None
    ]


def _automation(task: PlacedTask) -> dg.AutomationCondition | None:
    """Returns when an asset is materialized by itself, whether or not its sources ever are.

    Nothing materializes them, and Dagster's conditions would wait for it.
    """
    condition = task.placement.automation_condition
    ignore = getattr(condition, "ignore", None)  # conditions that look at no other asset have none
    keys = [each.key for each in task.sources]
    return ignore(dg.AssetSelection.assets(*keys)) if keys and ignore is not None else condition


def _code_link(node: CompiledTask) -> Mapping[str, dg.CodeReferencesMetadataValue]:
    """Returns where the task stands in its file, for whoever opens it from Dagster's page."""
    at = node.at
    if not at.line or not Path(at.file).is_file():
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        file = str(Path(at.file).resolve())
        place = dg.LocalFileCodeReference(file_path=file, line_number=at.line)
        return {"dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[place])}


def _schemas(tasks: Sequence[PlacedTask]) -> dict[str, dg.TableSchema]:
    """Returns the columns that the template says the rows of each task will have."""
    found: dict[str, dg.TableSchema] = {}
    for each in tasks:  # in order: a task may bring on what an earlier one brought along
        task = each.node.task
        if isinstance(task.spec, RowSpec):
            found[task.name] = expected_schema(task.spec, found.get)
    return found


def _columns(task: PlacedTask, schema: dg.TableSchema | None) -> dict[str, dg.MetadataValue]:
    spec = task.node.task.spec
    if not isinstance(spec, RowSpec) or schema is None:
        return {}
    lineage = column_lineage(
        spec,
        [each.name for each in schema.columns],
        dataset=dataset_of(spec, graph_inputs(task)),
        upstream=lambda node: task.other(node).key,
    )
    known = {} if lineage is None else {COLUMN_LINEAGE: dg.MetadataValue.column_lineage(lineage)}
    return {COLUMN_SCHEMA: dg.MetadataValue.table_schema(schema), **known}


def _description(compiled: CompiledTemplate, node: CompiledTask) -> str:
    given = compiled.metadata.description or compiled.metadata.annotations.get("description", "")
    spec = node.task.spec
    if isinstance(spec, TrainingSpec):
        made = f"Weights of {spec.model.source.identifier} after {spec.task_type}."
    else:
        model = f" with {spec.model.source.identifier}" if isinstance(spec, ModelSpec) else ""
        files = ", ".join(f"`responses.{each}`" for each in spec.output.formats)
        made = f"One output per row: {spec.task_type}{model}. Files: {files}."
    return f"{given}\n\n{made}".strip()


def _kinds(node: CompiledTask) -> set[str]:
    spec = node.task.spec
    if not isinstance(spec, ModelSpec | TrainingSpec):
        return {spec.task_type, "parquet"} if "parquet" in spec.output.formats else {spec.task_type}
    if spec.model.source.type == "openai":
        return {"llm", "openai"}
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
    sources: list[dg.AssetSpec]
    evaluations: list[dg.AssetSpec]
    job: "UnresolvedAssetJobDefinition"
    schedules: list[dg.ScheduleDefinition]


def template_definitions(
    compiled: CompiledTemplate,
    tags: Mapping[str, str] | None = None,
    placement: Placement = IN_LIBRARY,
) -> TemplateDefinitions:
    """Builds the Dagster definitions of a compiled template.

    Args:
        compiled: The template.
        tags: Tags of its runs, beyond those that all have.
        placement: Where its assets stand in a project.
    """
    assets = task_assets(compiled, placement)
    job = dg.define_asset_job(
        job_name(compiled, placement),
        selection=dg.AssetSelection.assets(*assets),
        description=compiled.metadata.description
        or str(compiled.metadata.annotations.get("description", "")),
        tags={**_job_tags(compiled), **(tags or {})},
        config=execution_config(),
        executor_def=mloc_executor(),
    )
    schedules = _schedules(compiled, job, partitions_of(compiled, placement))
    sources, scores = source_specs(compiled, placement), evaluation_specs(compiled, placement)
    return TemplateDefinitions(assets, sources, scores, job, schedules)


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
    compiled: CompiledTemplate,
    job: "UnresolvedAssetJobDefinition",
    partitions: dg.PartitionsDefinition | None,
) -> list[dg.ScheduleDefinition]:
    if compiled.schedule is None:
        return []
    asks = None if partitions is None else partial(_runs_of_a_tick, partitions)
    # `dagster dev` starts no schedule by itself: who tries a template out wants no run at night.
    running = compiled.schedule.enabled and STACK in os.environ
    return [
        dg.ScheduleDefinition(
            name=f"{job.name}_schedule",
            job=job,
            cron_schedule=compiled.schedule.cron,
            execution_timezone=compiled.schedule.timezone,
            description=f"Runs the template {compiled.metadata.name!r}, as its `schedule` asks.",
            execution_fn=asks,
            default_status=(
                dg.DefaultScheduleStatus.RUNNING if running else dg.DefaultScheduleStatus.STOPPED
            ),
        )
    ]


def _runs_of_a_tick(
    partitions: dg.PartitionsDefinition, context: dg.ScheduleEvaluationContext
) -> Iterator[dg.RunRequest]:
    """Asks for the newest partition of those that are over; of partitions without time for all."""
    tick = context.scheduled_execution_time
    keys = partitions.get_partition_keys(
        current_time=tick, dynamic_partitions_store=context.instance
    )
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        keys = keys[-1:]
    yield from (dg.RunRequest(f"{tick.isoformat()} {key}", partition_key=key) for key in keys)


JOB = "small_tasks"
"""The job that carries batches."""

# Not the job's name: Dagster keeps jobs, graphs and ops in one namespace.
_GRAPH = f"{JOB}__batch"


def batch_definitions() -> dg.Definitions:
    """Builds the job, and the asset with one materialization for each batch."""
    asset = _graph_asset(
        _graph(), keys_by_output_name={"result": dg.AssetKey([JOB])}, group_name=JOB
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
