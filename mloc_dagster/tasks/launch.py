"""Queueing library templates on the fleet, with or without a Dagster workspace at hand."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import uuid4

import dagster as dg
from dagster import DagsterRun, DagsterRunStatus, JobDefinition

from mloc_dagster.assets import add_partition, job_name
from mloc_dagster.compile import CompiledTask, CompiledTemplate
from mloc_dagster.errors import InputError
from mloc_dagster.executors import task_id_for, task_record
from mloc_dagster.fleet import (
    LIBRARY,
    ReconstructableRepository,
    job_origin,
    reconstruct_repository_def_from_pointer,
)
from mloc_dagster.ops import LAUNCH_TAG, launched_with
from mloc_dagster.results import open_store, write_record

PARTITION_TAG = "dagster/partition"
"""Dagster's own, by which it knows the partition of a run."""


def submit(instance: dg.DagsterInstance, run: DagsterRun) -> None:
    """Hands a created run to the instance's run coordinator: it waits in Dagster's queue."""
    # Neither the queue nor the fleet's launcher looks at the workspace, which only the UI has.
    instance.submit_run(run.run_id, workspace=None)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Launched:
    """A run that was queued.

    Attributes:
        run_id: The run.
        template: The template's name.
        task_ids: Its tasks, in the template's order.
    """

    run_id: str
    template: str
    task_ids: tuple[str, ...]


def check_launchable(library: CompiledTemplate, changed: CompiledTemplate) -> None:
    """Makes sure that the library's job can carry a template that was changed for one launch.

    Raises:
        TemplateError: If a task type is not built yet.
        InputError: If the change is to what the job itself is made of.
    """
    changed.check_built()
    if changed.metadata.name != library.metadata.name:
        raise InputError("--set may not rename the template: its job goes by that name")
    if changed.partitions != library.partitions:
        raise InputError("--set may not change the template's partitions: its assets have those")
    if [_shape(each) for each in changed.tasks] != [_shape(each) for each in library.tasks]:
        raise InputError(
            f"--set may not change the stages, task types, resources or SLO of"
            f" {library.metadata.name!r}: its job is built from the library's file; change that,"
            " or copy it with `mloc templates new`"
        )


def _shape(node: CompiledTask) -> tuple[object, ...]:
    spec = node.task.spec
    needs = (spec.resources, spec.enforce_cpu, spec.slo)
    return (node.task.name, node.task.depends_on, spec.task_type, needs)


def launch_template(instance: dg.DagsterInstance, compiled: CompiledTemplate) -> Launched:
    """Makes a template's tasks durable and queues their run.

    Args:
        instance: Where the run waits.
        compiled: A template of the library, perhaps changed, and compiled for the partition that
            it computes if it has any; see `check_launchable`.

    Raises:
        InputError: If the library has no such job.
    """
    definition = _job(job_name(compiled))
    add_partition(compiled, instance)
    partition = {} if compiled.partition is None else {PARTITION_TAG: compiled.partition}
    origin = ReconstructableRepository(LIBRARY).get_reconstructable_job(definition.name)
    run = instance.create_run_for_job(
        definition,
        run_id=str(uuid4()),
        run_config=definition.run_config or {},
        tags={**definition.tags, **partition, LAUNCH_TAG: "true", **launched_with("mloc launch")},
        status=DagsterRunStatus.NOT_STARTED,
        job_code_origin=origin.get_python_origin(),
        remote_job_origin=job_origin(definition.name),
    )
    ids = {
        each.task.name: task_id_for(run.run_id, compiled, each.task.name) for each in compiled.tasks
    }
    store = open_store()
    for node in compiled.tasks:
        task_id = ids[node.task.name]
        upstream = {name: ids[name] for name in node.task.depends_on}
        record = task_record(task_id, compiled, node, run.run_id, run.run_id, upstream)
        write_record(store.task(task_id), record)
    submit(instance, run)
    return Launched(run.run_id, compiled.metadata.name, tuple(ids.values()))


def _job(name: str) -> JobDefinition:
    repository = reconstruct_repository_def_from_pointer(LIBRARY)
    if not repository.has_job(name):
        raise InputError(f"the library has no job {name!r} that can run here")
    return repository.get_job(name)
