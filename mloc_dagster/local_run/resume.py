"""Finding what `--resume` means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.errors import InputError
from mloc_dagster.ops import may_be_alive, process_of
from mloc_dagster.results import (
    RECORD_NAME,
    ResultStore,
    TaskRecord,
    open_store,
    read_record,
    submitted_template,
)

if TYPE_CHECKING:
    import dagster as dg


def resumable(name: str) -> tuple[CompiledTemplate, str]:
    """Returns the template and the workflow id of a task that was started before.

    Args:
        name: The id of a task, or the one that all tasks of a template share.

    Raises:
        UnknownNameError: If there is no such task on the store; names the nearest.
    """
    store = open_store()
    record = _record(store, name)
    template = submitted_template(store.task(record.task_id), record)
    name = f"{record.task_id}/task.json"
    compiled = compile_mapping(template, name, partition=record.partition)
    return compiled, record.workflow_id


def _record(store: ResultStore, name: str) -> TaskRecord:
    folder = store.task(name)
    if not folder.exists("task.json"):
        for task_id in store.task_ids():
            if task_id.startswith(f"{name}-"):
                record = read_record(store.task(task_id))
                if record.workflow_id == name:
                    return record
    return read_record(folder)


def start_over(compiled: CompiledTemplate, workflow_id: str) -> None:
    """Deletes all that a workflow's tasks computed, and keeps what was submitted.

    Raises:
        InputError: If a process computes them.
    """
    from mloc_dagster.executors import task_id_for

    check_not_running(workflow_id)
    store = open_store()
    for node in compiled.tasks:
        folder = store.task(task_id_for(workflow_id, compiled, node.task.name))
        for name in folder.list():
            if name != RECORD_NAME:
                folder.delete(name)


def check_not_running(workflow_id: str) -> None:
    """Makes sure that no other process computes a workflow.

    Raises:
        InputError: If one does.
    """
    from mloc_dagster.ops import WORKFLOW_TAG
    from mloc_dagster.services import open_instance

    with open_instance() as instance:
        close_dead_runs(instance, WORKFLOW_TAG, workflow_id)


def close_dead_runs(instance: dg.DagsterInstance, workflow_tag: str, workflow_id: str) -> None:
    """Marks runs of a workflow as canceled whose process was killed.

    Raises:
        InputError: If one of them is still running: two processes must not compute the same rows.
    """
    from dagster import DagsterRunStatus, RunsFilter

    unfinished = [
        *(DagsterRunStatus.NOT_STARTED, DagsterRunStatus.QUEUED),  # the fleet's, or about to be
        *(DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING),
    ]
    runs = instance.get_runs(RunsFilter(tags={workflow_tag: workflow_id}, statuses=unfinished))
    for run in runs:
        process = process_of(run.tags)
        if process is not None and not may_be_alive(process):
            instance.report_run_canceled(run, "The process that ran it is gone.")
        else:
            where = f" in process {process.split(':')[1]}" if process else ""
            raise InputError(
                f"task {workflow_id} is running{where} (Dagster run {run.run_id}); "
                "wait for it, or stop it first"
            )
