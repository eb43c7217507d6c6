"""Stopping tasks, wherever their run is."""

from __future__ import annotations

import dagster as dg
from dagster import DagsterRunStatus

from mloc_dagster.errors import InputError
from mloc_dagster.fleet.dagster.run_launcher import FleetRunLauncher
from mloc_dagster.ops.run_tags import PROCESS_TAG
from mloc_dagster.tasks.workflows import find

_WAITING = (DagsterRunStatus.QUEUED, DagsterRunStatus.NOT_STARTED)
_ENDED = {
    DagsterRunStatus.SUCCESS: "done",
    DagsterRunStatus.FAILURE: "failed",
    DagsterRunStatus.CANCELED: "cancelled",
}


def cancel(instance: dg.DagsterInstance, task_or_run_id: str) -> str:
    """Stops the run that works on a task; its finished rows are kept.

    Other tasks of the same run stop with it. Running shards stop within seconds, afterwards.

    Returns:
        The id of the run.

    Raises:
        UnknownNameError: If there is no such task or run.
        InputError: If it has ended, or is not on the fleet.
    """
    run = find(instance, task_or_run_id).workflow.latest
    if run.is_finished:
        raise InputError(f"{task_or_run_id} has ended already ({_ENDED[run.status]})")
    if PROCESS_TAG in run.tags:
        where = run.tags[PROCESS_TAG].rpartition(":")[0]
        raise InputError(f"{task_or_run_id} belongs to an `mloc run` ({where}): stop it there")
    if run.status in _WAITING:
        instance.report_run_canceling(run, message="Cancelled while it was queued.")
        instance.report_run_canceled(run)
    else:
        launcher_of(instance).terminate(run.run_id)
    return run.run_id


def launcher_of(instance: dg.DagsterInstance) -> FleetRunLauncher:
    """Returns what hands runs to the fleet, also where the instance has no launcher of its own."""
    launcher = instance.run_launcher
    if isinstance(launcher, FleetRunLauncher):
        return launcher
    # Away from the control node the instance is another one, over the same database.
    launcher = FleetRunLauncher()
    launcher.register_instance(instance)
    return launcher
