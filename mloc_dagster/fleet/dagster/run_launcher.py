"""The run launcher that hands runs to warm run workers, and ends those that no worker has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import DagsterInstance, DagsterRun

from mloc_dagster.fleet.access import open_engine
from mloc_dagster.fleet.claims import TicketState
from mloc_dagster.fleet.dagster.internals import (
    GRPC_INFO_TAG,
    CheckRunHealthResult,
    ConfigurableClass,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    RunWorkerStatus,
)
from mloc_dagster.fleet.dagster.tickets import run_ticket, run_ticket_id
from mloc_dagster.fleet.engine import FleetEngine
from mloc_dagster.services import ConfigurableClassData, pool_connections


def carries_itself(run: DagsterRun) -> bool:
    """Tells whether a run is none of the fleet's.

    `mloc run`, `dagster job execute` and `dagster dev` carry their runs themselves. The first says
    for the UI whose job it is, and not where another process would find its code.
    """
    found = run.remote_job_origin is not None and run.job_code_origin is not None
    return not found or GRPC_INFO_TAG in run.tags


_HEALTHY = (TicketState.QUEUED, TicketState.RUNNING)


class FleetRunLauncher(RunLauncher[DagsterInstance], ConfigurableClass):
    """A run is a ticket in the queue `runs`; whoever holds its lease is its run worker.

    A run worker that dies is noticed by the other ones, and by Dagster's run monitoring when no
    other is alive: either way the run's ticket is claimed again and the run goes on.

    Args:
        inst_data: What dagster.yaml says of this launcher.
        engine: The fleet; by default the configured one, opened when it is first needed.
    """

    def __init__(
        self,
        inst_data: ConfigurableClassData | None = None,
        engine: FleetEngine | None = None,
    ) -> None:
        super().__init__()
        self._inst_data = inst_data
        self._given = engine

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """What dagster.yaml says of this launcher."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, object]:
        """Takes no configuration in dagster.yaml: Redis is a setting of mloc."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> FleetRunLauncher:
        """Builds the launcher when Dagster loads its instance."""
        return cls(inst_data)

    def register_instance(self, instance: DagsterInstance) -> None:
        """Pools the instance's connections: this is where the daemon's instance can be met."""
        super().register_instance(instance)
        pool_connections(instance)

    @property
    def _engine(self) -> FleetEngine:
        return self._given or open_engine()

    def launch_run(self, context: LaunchRunContext) -> None:
        """Queues the run for the run workers."""
        self._engine.submit(run_ticket(context.dagster_run))

    @property
    def supports_resume_run(self) -> bool:
        """Runs resume: their shards live elsewhere."""
        return True

    def resume_run(self, context: ResumeRunContext) -> None:
        """Queues the run again, whatever became of its ticket."""
        run_id = context.dagster_run.run_id
        if self._state(run_id) not in _HEALTHY:
            self._engine.forget(run_ticket_id(run_id))
            self._engine.submit(run_ticket(context.dagster_run))

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Health is the lease on the run's ticket."""
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Says whether the run waits for a run worker or has one."""
        if carries_itself(run):
            return CheckRunHealthResult(RunWorkerStatus.RUNNING)
        status = self._engine.status([run_ticket_id(run.run_id)])[run_ticket_id(run.run_id)]
        if status.state in _HEALTHY:
            return CheckRunHealthResult(RunWorkerStatus.RUNNING, run_worker_id=status.worker_id)
        why = status.why or f"its ticket is {status.state}"
        return CheckRunHealthResult(RunWorkerStatus.FAILED, why, run_worker_id=status.worker_id)

    def terminate(self, run_id: str) -> bool:
        """Asks the run's worker to cancel it, or ends it here when nobody is at it."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        self._engine.cancel(run_ticket_id(run_id))
        if self._state(run_id) is not TicketState.RUNNING:
            end_cancelled_run(self._instance, self._engine, run)
        return True

    def get_run_worker_debug_info(
        self, run: DagsterRun, include_container_logs: bool | None = True
    ) -> str | None:
        """Says where the run's ticket stands."""
        status = self._engine.status([run_ticket_id(run.run_id)])[run_ticket_id(run.run_id)]
        return f"run ticket: {status.state}, worker {status.worker_id}: {status.why}"

    def _state(self, run_id: str) -> TicketState:
        return self._engine.status([run_ticket_id(run_id)])[run_ticket_id(run_id)].state


def end_cancelled_run(instance: DagsterInstance, engine: FleetEngine, run: DagsterRun) -> None:
    """Stops the shards of a run that was cancelled while nobody ran it, and says so."""
    engine.cancel_run(run.run_id)
    leave_pools(instance, run.run_id)
    instance.report_run_canceled(run, "Cancelled; no run worker was at it.")


def leave_pools(instance: DagsterInstance, run_id: str) -> None:
    """Frees what a cancelled run holds of pools: Dagster frees a slot when its step ends only."""
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
