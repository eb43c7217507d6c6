"""What a template says of its shards, as Dagster and the fleet read it off a step."""

from typing import Any

import dagster as dg

from mloc_dagster.assets.names import op_name
from mloc_dagster.executors.base import TaskExecutor, model_key_text
from mloc_dagster.executors.registry import task_executor
from mloc_dagster.fleet.dagster.tickets import fleet_tags
from mloc_dagster.fleet.hardware import requirements_of
from mloc_dagster.ops.shard import shard_op
from mloc_dagster.schema.task import ModelSpec, TaskSpec
from mloc_dagster.schema.task_type import find_task_type


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
