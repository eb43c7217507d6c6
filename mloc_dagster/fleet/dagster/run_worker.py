"""Running whole Dagster runs in the threads of one warm process."""

from __future__ import annotations

import logging
from importlib import import_module

from dagster import DagsterInstance, DagsterRun, DagsterRunStatus

from mloc_dagster.fleet.claims import Claim, StopReason
from mloc_dagster.fleet.dagster.internals import drive_run
from mloc_dagster.fleet.dagster.jobs import LIBRARY, Jobs
from mloc_dagster.fleet.dagster.run_launcher import end_cancelled_run, leave_pools
from mloc_dagster.fleet.dagster.run_loop import Carrier, carried_by
from mloc_dagster.fleet.engine import FleetEngine
from mloc_dagster.services import DATABASE_AWAY

_log = logging.getLogger(__name__)

_PAUSE_S = 5.0

# A run that kills its worker takes the worker's other runs along each time: far more losses than
# anything else brings together, and few enough to end it within minutes.
_MAX_LOSSES = 10


class RunWorker:
    """Runs what the run launcher handed over; a run that another worker began is resumed.

    Args:
        engine: The fleet.
        instance: Dagster's instance.
        jobs: Jobs that are loaded already; by default its own.
    """

    def __init__(
        self, engine: FleetEngine, instance: DagsterInstance, jobs: Jobs | None = None
    ) -> None:
        self._engine = engine
        self._instance = instance
        self._jobs = jobs or Jobs()

    def warm_up(self) -> None:
        """Loads what every first run would otherwise wait for."""
        self._jobs.preload(LIBRARY)
        for module in ("pyarrow.parquet", "matplotlib.backends.backend_agg"):
            import_module(module)

    def perform(self, claim: Claim) -> None:
        """Runs the run of a claim until it ends, or until this worker has to stop.

        A database that stays away is no loss of a worker, and counts as none: the run goes back.
        """
        try:
            self._perform(claim)
        except DATABASE_AWAY as error:
            self._put_back(claim, str(error))

    def _put_back(self, claim: Claim, why: str) -> None:
        _log.warning("run %s was interrupted, and waits to be gone on with: %s", claim.run_id, why)
        claim.stop.wait(_PAUSE_S)
        if claim.reason is not StopReason.LOST:
            claim.give_back()

    def _perform(self, claim: Claim) -> None:
        run = self._instance.get_run_by_id(claim.run_id)
        if run is not None and not run.is_finished:
            losses = self._engine.status([claim.ticket_id])[claim.ticket_id].losses
            if run.status is DagsterRunStatus.CANCELING:
                end_cancelled_run(self._instance, self._engine, run)
            elif losses >= _MAX_LOSSES:
                self._engine.cancel_run(run.run_id)
                self._instance.report_run_failed(run, f"{losses} run workers were lost with it")
                leave_pools(self._instance, run.run_id)
            else:
                self._execute(claim, run)
        if claim.reason is StopReason.DRAINING and not self._finished(claim.run_id):
            claim.give_back()
            return
        if claim.reason is None and not self._finished(claim.run_id):
            self._put_back(claim, "see its log")
            return
        if claim.reason is StopReason.CANCELLED:
            leave_pools(self._instance, claim.run_id)
            self._end_cancelled(claim.run_id)
        if claim.reason is not StopReason.LOST:
            self._engine.forget_run(claim.run_id)
            claim.finish()

    def _end_cancelled(self, run_id: str) -> None:
        """Ends a run that was cancelled while it began, which Dagster takes for an interruption."""
        run = self._instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            end_cancelled_run(self._instance, self._engine, run)

    def _execute(self, claim: Claim, run: DagsterRun) -> None:
        try:
            job = self._jobs.job_of(run)
        except Exception as error:  # noqa: BLE001 (a template may fail to load in any way)
            self._instance.report_run_failed(run, f"the job cannot be loaded here: {error}")
            return
        resume = run.status is DagsterRunStatus.STARTED
        with carried_by(Carrier(self._engine, claim)):
            drive_run(job, run, self._instance, resume=resume)

    def _finished(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        return run is None or run.is_finished
