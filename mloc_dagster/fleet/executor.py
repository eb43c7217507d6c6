"""The Dagster executor that sends shards to the fleet and runs everything else where it is."""

from __future__ import annotations

from collections.abc import Iterator

from dagster import DagsterEvent, Executor
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode

from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.fleet.run_loop import RunLoop


class FleetExecutor(Executor):
    """Runs a plan with its shards on workers; see `run_loop`.

    Args:
        engine: Carries the shards.
    """

    def __init__(self, engine: RedisFleetEngine) -> None:
        self._engine = engine

    @property
    def retries(self) -> RetryMode:
        """Steps are retried as their ops say."""
        return RetryMode.ENABLED

    def execute(
        self, plan_context: PlanOrchestrationContext, execution_plan: ExecutionPlan
    ) -> Iterator[DagsterEvent]:
        """Runs the plan; yields every event of the run.

        Raises:
            DagsterExecutionInterruptedError: If the run was cancelled, or its worker is to stop
                and another one will go on with it.
        """
        with (
            InstanceConcurrencyContext(plan_context.instance, plan_context.dagster_run) as slots,
            ActiveExecution(
                execution_plan, retry_mode=self.retries, instance_concurrency_context=slots
            ) as active,
        ):
            yield from RunLoop(self, self._engine, plan_context, active).run()
