"""Going on with tasks that failed or were cancelled: the same tasks, only what is missing."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable

import dagster as dg
from dagster import DagsterInvariantViolationError, DagsterRun, DagsterRunStatus, JobDefinition

from mloc_dagster.errors import InputError
from mloc_dagster.fleet import (
    Jobs,
    KnownExecutionState,
    create_execution_plan,
    job_origin,
    snapshot_from_execution_plan,
)
from mloc_dagster.ops import (
    CHANGED_MODEL_TAG,
    DEAD_LETTER_TAG,
    RETRY_ERRORS_TAG,
    SLO_MISSED_TAG,
    SUBMITTED_TAG,
    RunTask,
)
from mloc_dagster.sensors import SLACK_TAG
from mloc_dagster.services import (
    PARENT_RUN_ID_TAG,
    PRIORITY_TAG,
    RESUME_RETRY_TAG,
    ROOT_RUN_ID_TAG,
    TAGS_TO_MAYBE_OMIT_ON_RETRY,
    DagsterRunAlreadyExists,
)
from mloc_dagster.tasks.launch import submit
from mloc_dagster.tasks.steps import Steps, steps_of
from mloc_dagster.tasks.workflows import Workflow, find

_OF_THE_OLD_RUN = {
    *TAGS_TO_MAYBE_OMIT_ON_RETRY,
    DEAD_LETTER_TAG,
    SLO_MISSED_TAG,
    SUBMITTED_TAG,  # its SLO counts from the retry
    SLACK_TAG,
    RETRY_ERRORS_TAG,
    CHANGED_MODEL_TAG,
}


def retry_task(
    instance: dg.DagsterInstance, task_or_run_id: str, *, failed_rows: bool = False
) -> str:
    """Queues a run that goes on where the last run of a task ended; see `retry_run`.

    Returns:
        The id of the new run.
    """
    run = retry_run(instance, task_or_run_id, failed_rows=failed_rows)
    submit(instance, run)
    return run.run_id


def retry_run(
    instance: dg.DagsterInstance,
    task_or_run_id: str,
    *,
    failed_rows: bool = False,
    run_id: str | None = None,
) -> DagsterRun:
    """Creates a run that goes on where the last run of a task ended, and hands it to nobody.

    The tasks keep their ids, their templates as they were submitted, and every row that is there.
    What the run did of other tasks and did not finish is gone on with, too.

    Args:
        instance: Whose runs.
        task_or_run_id: Of the task, of its workflow, or of one of its runs.
        failed_rows: Whether rows that ended with an error are computed again.
        run_id: The id of the new run; by default one that follows from the run that it goes on
            with, so that of two that retry it at once one is refused.

    Raises:
        UnknownNameError: If there is no such task or run.
        InputError: If there is nothing to retry, or somebody works on it.
    """
    workflow = find(instance, task_or_run_id).workflow
    parent = workflow.latest
    if parent.status is DagsterRunStatus.SUCCESS:
        raise InputError(f"{task_or_run_id} is done: there is nothing to retry")
    if not parent.is_finished:
        raise InputError(
            f"{task_or_run_id} is still at it (Dagster run {parent.run_id},"
            f" {parent.status.value.lower()}): wait for it, or `mloc cancel` it first"
        )
    if parent.job_code_origin is None:
        raise InputError(
            f"{task_or_run_id} belongs to an `mloc run`; go on with:"
            f" mloc run --resume {workflow.workflow_id}"
        )
    job = _job_of(parent)
    steps = steps_of(instance, [each.dagster_run for each in workflow.runs])
    known = KnownExecutionState.build_for_reexecution(instance, parent)
    all_keys = create_execution_plan(job, parent.run_config).step_keys_to_execute
    missing = _missing_steps(workflow.tasks(), all_keys, steps, known, everything=failed_rows)
    if not missing:
        raise InputError(f"every step of {task_or_run_id} succeeded: there is nothing to retry")
    try:
        return _create(
            instance, workflow, job, missing, known, failed_rows=failed_rows, run_id=run_id
        )
    except DagsterRunAlreadyExists:
        if run_id is not None:
            raise
        raise InputError(f"{task_or_run_id} has just been retried by another command") from None


def _job_of(parent: DagsterRun) -> JobDefinition:
    try:
        return Jobs().job_of(parent).get_definition()
    except DagsterInvariantViolationError as error:
        raise InputError(
            f"the job {parent.job_name!r} is in the library no more, and a retry needs it"
        ) from error


def _missing_steps(
    tasks: Iterable[RunTask],
    all_keys: Collection[str],
    steps: Steps,
    known: KnownExecutionState,
    *,
    everything: bool,
) -> list[str]:
    """Returns the steps that have to run.

    Dagster's own choice leaves out shards of a cancelled run that nobody had begun.

    Args:
        tasks: The tasks of the workflow.
        all_keys: Every step of the job, shards as `run_shard[?]`.
        steps: What became of them.
        known: Which shards there are.
        everything: Whether all steps of a task that is not done run again.
    """
    missing: list[str] = []
    for task in tasks:
        if task.last_step in steps and steps[task.last_step].succeeded:
            continue
        plan = f"{task.steps}.plan"
        planned = plan in steps and steps[plan].succeeded
        for key in (each for each in all_keys if task.owns(each)):
            if everything or not planned:
                missing.append(key)
                continue
            shards = known.dynamic_mappings.get(plan, {}).get("result") or []
            resolved = (
                [key.replace("[?]", f"[{each}]") for each in shards] if "[?]" in key else [key]
            )
            missing += [each for each in resolved if not (each in steps and steps[each].succeeded)]
    return missing


def _create(
    instance: dg.DagsterInstance,
    workflow: Workflow,
    job: JobDefinition,
    step_keys: list[str],
    known: KnownExecutionState,
    *,
    failed_rows: bool,
    run_id: str | None,
) -> DagsterRun:
    parent = workflow.latest
    run_id = run_id or str(uuid.uuid5(uuid.UUID(parent.run_id), "retry"))
    plan = create_execution_plan(
        job,
        parent.run_config,
        step_keys_to_execute=step_keys,
        known_state=known.update_for_step_selection(step_keys),
    )
    root = parent.root_run_id or parent.run_id
    return instance.create_run(
        job_name=parent.job_name,
        run_id=run_id,
        run_config=parent.run_config,
        status=DagsterRunStatus.NOT_STARTED,
        tags={
            **_kept_tags(parent),
            PARENT_RUN_ID_TAG: parent.run_id,
            ROOT_RUN_ID_TAG: root,
            RESUME_RETRY_TAG: "true",
            **({RETRY_ERRORS_TAG: "true"} if failed_rows else {}),
        },
        root_run_id=root,
        parent_run_id=parent.run_id,
        step_keys_to_execute=step_keys,
        execution_plan_snapshot=snapshot_from_execution_plan(plan, job.get_job_snapshot_id()),
        job_snapshot=job.get_job_snapshot(),
        parent_job_snapshot=job.get_parent_job_snapshot(),
        asset_selection=parent.asset_selection,
        asset_check_selection=parent.asset_check_selection,
        resolved_op_selection=parent.resolved_op_selection,
        op_selection=parent.op_selection,
        remote_job_origin=parent.remote_job_origin or job_origin(parent.job_name),
        job_code_origin=parent.job_code_origin,
        asset_graph=job.asset_layer.asset_graph,
    )


def _kept_tags(parent: DagsterRun) -> dict[str, str]:
    left_out = set(_OF_THE_OLD_RUN)
    if SLACK_TAG in parent.tags:
        left_out.add(PRIORITY_TAG)  # it was raised for the time that is over
    return {key: value for key, value in parent.tags.items() if key not in left_out}
