"""The executor of every mloc job: the fleet where there is one, else one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dagster import (
    Executor,
    ExecutorDefinition,
    ExecutorRequirement,
    Field,
    InitExecutorContext,
    Selector,
    in_process_executor,
    multi_or_in_process_executor,
    multiprocess_executor,
)

from mloc_dagster.settings import settings


def execution_config() -> dict[str, object]:
    """Returns the run config that a job has by default: `fleet` when Redis is configured.

    Dagster's own default is a process per step, which would load the model for every shard.
    """
    if settings().redis_url is None:
        return {"execution": {"config": {"in_process": {}}}}
    return {
        "execution": {"config": {"fleet": {}}},
        # Sixty lines a run on the terminals of workers would tell nobody anything.
        "loggers": {"console": {"config": {"log_level": "ERROR"}}},
    }


def mloc_executor() -> ExecutorDefinition:
    """Returns the executor that a launch chooses from: fleet, in_process or multiprocess."""
    default = "fleet" if settings().redis_url else "in_process"
    choices = {
        "fleet": {},
        "in_process": _schema(in_process_executor),
        "multiprocess": _schema(multiprocess_executor),
    }
    return ExecutorDefinition(
        name="fleet_or_in_process_or_multiprocess",
        description=f"{default} unless the launch config chooses another one",
        config_schema=Field(Selector(choices), default_value={default: {}}),
        requirements=_requirements,
        executor_creation_fn=_create,
    )


def _schema(executor: ExecutorDefinition) -> Any:
    return executor.config_schema.config_type


def _requirements(config: Mapping[str, object]) -> Sequence[ExecutorRequirement]:
    if "fleet" in config:
        return [ExecutorRequirement.NON_EPHEMERAL_INSTANCE]
    return multi_or_in_process_executor.get_requirements(config)


def _create(init_context: InitExecutorContext) -> Executor:
    if "fleet" in init_context.executor_config:
        from mloc_dagster.fleet.dagster.run_loop import fleet_executor

        return fleet_executor()
    create = multi_or_in_process_executor.executor_creation_fn
    assert create is not None  # noqa: S101 (for the type checker: Dagster's own always has one)
    return create(init_context)
