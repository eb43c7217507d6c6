"""The Dagster executor that sends shards to the fleet and runs everything else where it is."""

from __future__ import annotations

from collections.abc import Iterator

import redis
from dagster import DagsterEvent, Executor
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode

from mloc_dagster.fleet.redis_engine import RedisFleetEngine
from mloc_dagster.fleet.run_claim import current_run_claim
from mloc_dagster.fleet.run_loop import RunLoop
from mloc_dagster.services.storages import DATABASE_AWAY


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
                and another one will go on with it; also when the database or Redis stayed away
                for too long, which is no fault of the run.
        """
        instance = plan_context.instance
        try:
            with (
                InstanceConcurrencyContext(instance, plan_context.dagster_run) as slots,
                ActiveExecution(
                    execution_plan, retry_mode=self.retries, instance_concurrency_context=slots
                ) as active,
            ):
                yield from RunLoop(self._engine, plan_context, active).run()
        except (*DATABASE_AWAY, redis.RedisError) as error:
            if current_run_claim() is None:
                raise
            raise DagsterExecutionInterruptedError(f"the run waits for {error}") from error
