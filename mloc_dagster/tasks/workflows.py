"""Tasks and the runs that worked on them; cancelling both."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus, RunRecord

from mloc_dagster.errors import InputError
from mloc_dagster.fleet import FleetRunLauncher
from mloc_dagster.ops import (
    NODES_TAG,
    RESULTS_TAG,
    TEMPLATE_TAG,
    WORKFLOW_TAG,
    RunTask,
    process_of,
    run_tasks,
    workflow_id,
)
from mloc_dagster.results import RECORD_NAME, open_store, read_record
from mloc_dagster.sensors import tasks_of
from mloc_dagster.services import ROOT_RUN_ID_TAG

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_TASK_OF_WORKFLOW = re.compile(rf"({_UUID})-.+")


@dataclass(frozen=True, slots=True)
class Workflow:
    """The tasks of one submission.

    Attributes:
        workflow_id: What they share.
        runs: The Dagster runs that worked on them, oldest first; at least one.
    """

    workflow_id: str
    runs: tuple[RunRecord, ...]

    @property
    def latest(self) -> DagsterRun:
        """The newest run."""
        return self.runs[-1].dagster_run

    @property
    def template(self) -> str:
        """The template's name."""
        return self.latest.tags.get(TEMPLATE_TAG, self.latest.job_name)

    def tasks(self) -> tuple[RunTask, ...]:
        """Returns the tasks, in the template's order."""
        return run_tasks(self.latest.job_name, self.latest.tags, self.workflow_id)

    def runs_of(self, task: RunTask) -> list[RunRecord]:
        """Returns the runs that worked on one of the tasks, oldest first."""
        return [each for each in self.runs if task in tasks_of(each.dagster_run)]


@dataclass(frozen=True, slots=True)
class Found:
    """What an id means.

    Attributes:
        workflow: Where it belongs.
        tasks: The task, or all tasks if the id is that of a run or a workflow.
    """

    workflow: Workflow
    tasks: tuple[RunTask, ...]


def find_workflows(instance: dg.DagsterInstance, ids: Iterable[str]) -> dict[str, Workflow]:
    """Returns workflows with all their runs, by id; what nobody knows is left out."""
    wanted = sorted(set(ids))
    if not wanted:
        return {}
    filters = (
        dg.RunsFilter(run_ids=wanted),
        dg.RunsFilter(tags={WORKFLOW_TAG: wanted}),
        dg.RunsFilter(tags={ROOT_RUN_ID_TAG: wanted}),
    )
    records = {
        each.dagster_run.run_id: each for one in filters for each in instance.get_run_records(one)
    }
    found: defaultdict[str, list[RunRecord]] = defaultdict(list)
    for record in sorted(records.values(), key=lambda each: each.storage_id):
        if NODES_TAG in record.dagster_run.tags:
            found[workflow_id(record.dagster_run)].append(record)
    return {each: Workflow(each, tuple(found[each])) for each in wanted if each in found}


def look_up(instance: dg.DagsterInstance, name: str) -> Found | None:
    """Returns what the id of a task, a run or a workflow means; None if it means nothing.

    Raises:
        InputError: If the run is none of a template.
    """
    for candidate in _workflows_named(instance, name):
        workflow = find_workflows(instance, [candidate]).get(candidate)
        if workflow is None:
            continue
        if name == candidate or any(each.dagster_run.run_id == name for each in workflow.runs):
            return Found(workflow, workflow.tasks())
        chosen = tuple(each for each in workflow.tasks() if each.task_id == name)
        if chosen:
            return Found(workflow, chosen)
    return None


def results_of(instance: dg.DagsterInstance, name: str) -> str | None:
    """Returns where the run of a task says that it wrote; None if it does not say, or is unknown.

    Any run may say anything: only what a user may read anyway is to be opened with it.
    """
    try:
        found = look_up(instance, name)
    except InputError:  # a run, and none of a template
        return None
    return None if found is None else found.workflow.latest.tags.get(RESULTS_TAG)


def find(instance: dg.DagsterInstance, name: str) -> Found:
    """Returns what the id of a task, a run or a workflow means.

    Raises:
        InputError: If nobody knows it, or the run is none of a template.
    """
    found = look_up(instance, name)
    if found is None:
        raise InputError(f"there is no task or run {name!r}")
    return found


def _workflows_named(instance: dg.DagsterInstance, name: str) -> Sequence[str]:
    run = instance.get_run_by_id(name)
    if run is not None:
        if NODES_TAG not in run.tags:
            raise InputError(f"run {name} is one of {run.job_name!r}, which is no template's job")
        return [workflow_id(run)]
    folder = open_store().task(name)
    if folder.exists(RECORD_NAME):
        return [read_record(folder).workflow_id]
    # What still waits for its run may have no record yet.
    prefix = _TASK_OF_WORKFLOW.fullmatch(name)
    return [name] if prefix is None else [prefix[1], name]


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
        InputError: If there is no such task or run, it has ended, or is not on the fleet.
    """
    run = find(instance, task_or_run_id).workflow.latest
    if run.is_finished:
        raise InputError(f"{task_or_run_id} has ended already ({_ENDED[run.status]})")
    process = process_of(run.tags)
    if process is not None:
        host, pid, *_ = process.split(":")
        raise InputError(f"{task_or_run_id} belongs to an `mloc run` ({host}:{pid}): stop it there")
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
