"""The graph behind a task's asset: plan → run_shard × N → aggregate → export; names and config."""

import inspect
import json
from typing import Any

import dagster as dg

from mloc_dagster.assets.launch_config import launch_config, overrides_of
from mloc_dagster.assets.placement import PlacedTask
from mloc_dagster.executors import TaskExecutor, model_key_text, task_executor
from mloc_dagster.fleet import fleet_tags, requirements_of
from mloc_dagster.ops import (
    RESULT,
    ROWS,
    aggregate_op,
    checks_of,
    export_op,
    input_name,
    op_name,
    plan_op,
    shard_op,
)
from mloc_dagster.schema import ModelSpec, TaskSpec, find_task_type


def shard_invocation(spec: TaskSpec) -> dg.PendingNodeInvocation[dg.OpDefinition]:
    """Returns the op of a task's shards: what each needs, how often it is tried, its pool."""
    return shard_op(_pool(spec)).alias("run_shard").tag(fleet_tags_of(spec))


def fleet_tags_of(spec: TaskSpec) -> dict[str, str]:
    """Returns what a task's shards need of their workers, as tags."""
    requirements = requirements_of(spec.resources.hardware, enforce_cpu=spec.enforce_cpu)
    return fleet_tags(requirements, _model_key(spec), spec.retries)


def _pool(spec: TaskSpec) -> str | None:
    if spec.resources.pool is not None:
        return spec.resources.pool
    return op_name(spec.model.source.identifier) if isinstance(spec, ModelSpec) else None


def _model_key(spec: TaskSpec) -> str | None:
    found = find_task_type(spec.task_type)
    if found.executor is None or found.trains:  # a training loads its model in its own process
        return None
    executor: TaskExecutor[Any, Any] = task_executor(spec.task_type)
    key = executor.model_key(spec)
    return None if key is None else model_key_text(key)


def task_graph(task: PlacedTask) -> dg.GraphDefinition:
    """Builds the graph of one task; `graph_inputs` says which asset each of its inputs is."""
    placement, node = task.placement, task.node
    upstream = [input_name(each) for each in node.task.depends_on]
    rows = task.is_first and placement.rows_from is not None
    outputs = {each.name: each.get_python_identifier() for each in task.check_specs()}
    planning = plan_op(len(upstream), rows=rows, deps=len(task.waits_for)).alias("plan")
    computing = shard_invocation(node.task.spec)
    aggregating = aggregate_op.alias("aggregate")
    exporting = export_op(checks_of(node.task.spec)).alias("export")
    names = {name: f"upstream_{place}" for place, name in enumerate(upstream)}
    names |= {name: name for name in graph_inputs(task) if name not in names}

    def compose(**inputs: object) -> dict[str, object]:
        shards = planning(**{names[name]: each for name, each in inputs.items()})
        ended = exporting(aggregating(shards.map(computing).collect()))
        checked = {name: getattr(ended, check) for check, name in outputs.items()}
        return {RESULT: getattr(ended, RESULT), **checked}

    # Dagster reads a graph's inputs off the function's signature.
    compose.__signature__ = _signature(list(names))  # type: ignore[attr-defined]
    return dg.graph(
        name=task.graph,
        description=f"Task {node.task.name!r} of {task.compiled.metadata.name!r}, in shards.",
        ins={name: dg.GraphIn() for name in names},
        out={name: dg.GraphOut() for name in (RESULT, *outputs.values())},
        config=_config_mapping(task),
    )(compose)


def graph_inputs(task: PlacedTask) -> dict[str, dg.AssetKey]:
    """Returns which asset each input of a task's graph is."""
    found = {input_name(each): task.other(each).key for each in task.node.task.depends_on}
    found |= {f"dep_{place}": key for place, key in enumerate(task.waits_for)}
    if task.is_first and task.placement.rows_from is not None:
        found[ROWS] = task.placement.rows_from
    return found


def _config_mapping(task: PlacedTask) -> dg.ConfigMapping:
    document = json.dumps(task.compiled.document)

    @dg.config_mapping(config_schema=dict(launch_config(type(task.node.task.spec))))
    def overrides_to_ops(overrides: dict[str, Any]) -> dict[str, object]:
        config = {
            "template": document,
            "node": task.node.task.name,
            "job": task.job,
            "overrides": overrides_of(overrides),
        }
        return {"plan": {"config": config}}

    return overrides_to_ops


def _signature(names: list[str]) -> inspect.Signature:
    parameters = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names
    ]
    return inspect.Signature(parameters)
