"""Submitting runs to a Dagster deployment as its UI would, and waiting for them."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.remote_representation.external import RemoteJob
from dagster._core.snap import ExecutionPlanSnapshot
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

REPOSITORY = "__repository__"

_LOOK_EVERY_S = 0.05
_PATIENCE_S = 1800.0


class Client:
    """Creates runs and leaves them in the queue of a deployment's own daemon.

    The instance is Dagster's own on the deployment's database: the same for every system that is
    compared, and none of mloc's settings is needed.

    Args:
        folder: Where its dagster.yaml goes; empty.
        postgres_url: The deployment's database.
        workspace: The deployment's workspace.yaml.
        run_config: What every run is given.
    """

    def __init__(
        self, folder: Path, postgres_url: str, workspace: Path, run_config: Mapping[str, object]
    ) -> None:
        folder.mkdir(parents=True)
        storage = {"postgres": {"postgres_url": postgres_url}}
        coordinator = {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"}
        document = {
            "storage": storage,
            "run_coordinator": coordinator,
            "telemetry": {"enabled": False},
        }
        (folder / "dagster.yaml").write_text(yaml.safe_dump(document))
        self.instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder)))
        self.instance.optimize_for_webserver(
            statement_timeout=60_000, pool_recycle=3_600, max_overflow=4
        )
        self._run_config = run_config
        self._target = WorkspaceFileTarget(paths=[str(workspace)])
        self._jobs: dict[str, tuple[RemoteJob, ExecutionPlanSnapshot]] = {}

    def __enter__(self) -> Self:
        self._process = WorkspaceProcessContext(self.instance, self._target).__enter__()
        self._workspace = self._process.create_request_context()
        (self._location,) = self._workspace.code_locations
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.__exit__(kind, error, trace)
        self.instance.dispose()

    def create(self, job_name: str) -> str:
        """Creates a run of a job and returns its id; its plan is asked for once a job."""
        if job_name not in self._jobs:
            job = self._location.get_repository(REPOSITORY).get_full_job(job_name)
            plan = self._location.get_execution_plan(
                job, self._run_config, None, None, instance=self.instance
            )
            self._jobs[job_name] = (job, plan.execution_plan_snapshot)
        job, snapshot = self._jobs[job_name]
        run = self.instance.create_run(
            job_name=job_name,
            run_id=None,
            run_config=self._run_config,
            status=None,
            tags=job.tags,
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=snapshot.step_keys_to_execute,
            execution_plan_snapshot=snapshot,
            job_snapshot=job.job_snapshot,
            parent_job_snapshot=job.parent_job_snapshot,
            asset_selection=None,
            asset_check_selection=None,
            resolved_op_selection=None,
            op_selection=None,
            remote_job_origin=job.get_remote_origin(),
            job_code_origin=job.get_python_origin(),
            asset_graph=self._location.get_repository(REPOSITORY).asset_graph,
        )
        return run.run_id

    def submit(self, run_id: str) -> float:
        """Puts a run into the queue; returns when, in seconds since 1970."""
        submitted = time.time()
        self.instance.submit_run(run_id, self._workspace)
        return submitted

    def wait(self, run_ids: Collection[str]) -> float:
        """Waits until all runs have succeeded; returns when the last one did.

        Raises:
            SystemExit: If one fails, or half an hour passes.
        """
        deadline = time.monotonic() + _PATIENCE_S
        ended = dg.RunsFilter(run_ids=list(run_ids), statuses=list(FINISHED_STATUSES))
        while self.instance.get_runs_count(ended) < len(run_ids):
            if time.monotonic() > deadline:
                raise SystemExit(f"{len(run_ids)} runs have not ended in {_PATIENCE_S:g} s")
            time.sleep(_LOOK_EVERY_S)
        records = self.instance.get_run_records(ended)
        for each in records:
            if not each.dagster_run.is_success:
                raise SystemExit(self._failure(each.dagster_run))
        return max(each.end_time or 0.0 for each in records)

    def run(self, job_name: str) -> str:
        """Runs a job to its end and returns the run's id; for warming up."""
        run_id = self.create(job_name)
        self.submit(run_id)
        self.wait([run_id])
        return run_id

    def _failure(self, run: dg.DagsterRun) -> str:
        """Returns how a run ended, and the errors on the way."""
        lines = [f"run {run.run_id} of {run.job_name} ended as {run.status.value}"]
        for entry in self.instance.all_logs(run.run_id):
            data = None if entry.dagster_event is None else entry.dagster_event.event_specific_data
            error = getattr(data, "error", None)
            if error is not None:
                lines.append(f"{entry.step_key or 'run'}: {error.to_string()}")
        return "\n".join(lines)
