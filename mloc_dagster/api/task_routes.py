"""Tasks: submitted, listed, shown, stopped, gone on with."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Request
from fastapi.responses import Response

from mloc_dagster.api.metrics import TASKS
from mloc_dagster.api.openapi import SUBMIT_BODY, problems
from mloc_dagster.api.parameters import (
    FILTERS,
    Cursor,
    IdempotencyKey,
    Limit,
    TaskId,
    no_other_parameters,
    task_filter,
)
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import State, reply
from mloc_dagster.api.submission_body import read_submission
from mloc_dagster.api.task_detail import progress_reply, task_reply, task_view, workflow_state
from mloc_dagster.errors import InputError
from mloc_dagster.ledger import TaskEntry, TaskFilter
from mloc_dagster.wire import (
    ChangedTask,
    ChangeReply,
    ProgressReply,
    RetryRequest,
    SubmitReply,
    TaskPage,
    TaskReply,
    TaskState,
    WorkflowReply,
)

router = APIRouter(prefix="/api/v1", tags=["tasks"])


@router.post(
    "/tasks",
    status_code=202,
    response_model=SubmitReply,
    responses=problems(400, 408, 409, 413, 422),
    openapi_extra=SUBMIT_BODY,
    summary="Submit templates",
)
async def submit(
    api: State,
    request: Request,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accepts every task of one or several YAML documents, or none; they are on disk afterwards."""
    try:
        body = await read_submission(request, api.limits)
        answer, new = await api.acceptance.submit(body, idempotency_key)
    finally:
        await request.close()  # with the files that came along
    request.scope[TASKS] = [each.task_id for each in answer.tasks]
    return reply(answer, 202, {} if new else {"Idempotent-Replayed": "true"})


@router.get(
    "/tasks",
    response_model=TaskPage,
    responses=problems(422),
    dependencies=[Depends(no_other_parameters(*FILTERS))],
    summary="List tasks",
)
def list_tasks(
    api: State,
    chosen: Annotated[TaskFilter, Depends(task_filter)],
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """Returns tasks, the newest first."""
    entries, following = api.ledger.list(chosen, limit=limit, cursor=cursor)
    tasks = tuple(task_view(each) for each in entries)
    return reply(TaskPage(count=len(tasks), tasks=tasks, next_cursor=following))


@router.get(
    "/tasks/{task_id}",
    response_model=TaskReply,
    responses=problems(404, 422),
    summary="Show a task",
)
def show(api: State, task_id: TaskId) -> Response:
    """Returns all that is known of a task."""
    return reply(task_reply(api, api.task(task_id)))


@router.get(
    "/workflows/{workflow_id}",
    response_model=WorkflowReply,
    responses=problems(404, 422),
    summary="Show all tasks of a submitted document",
)
def show_workflow(api: State, workflow_id: TaskId) -> Response:
    """Returns the tasks of a workflow in its template's order."""
    entries = api.workflow(workflow_id)
    answer = WorkflowReply(
        workflow_id=entries[0].workflow_id,
        template=entries[0].template,
        status=workflow_state(entries),
        count=len(entries),
        tasks=tuple(task_view(each) for each in entries),
    )
    return reply(answer)


@router.get(
    "/tasks/{task_id}/progress",
    response_model=ProgressReply,
    responses=problems(404, 422),
    summary="How far a task is",
)
def progress(api: State, task_id: TaskId) -> Response:
    """Returns rows, shards and the time left."""
    return reply(progress_reply(api, api.task(task_id)))


@router.post(
    "/tasks/{task_id}/cancel",
    status_code=202,
    response_model=ChangeReply,
    responses=problems(404, 409, 422),
    summary="Stop a task, or all tasks of a workflow",
)
def cancel(api: State, task_id: TaskId) -> Response:
    """Stops what has not ended; finished rows are kept.

    Tasks of one run stop together, and so do the tasks of a template that has no run yet.
    """
    entries = api.tasks(task_id)
    if all(each.state.ended and each.state is not TaskState.CANCELLED for each in entries):
        raise Refusal(409, "has-ended", f"{task_id} has ended already ({_states(entries)})")
    ids = [each.task_id for each in entries]
    if entries[0].origin == "api":
        api.ledger.cancel([each.task_id for each in entries if not each.state.ended])
    else:
        _cancel_run(api, task_id)
    return reply(_changed(api, ids), 202)


@router.post(
    "/tasks/{task_id}/retry",
    status_code=202,
    response_model=ChangeReply,
    responses=problems(400, 404, 408, 409, 413, 422),
    summary="Go on with a task that failed, or with a workflow's",
)
def retry(
    api: State,
    task_id: TaskId,
    wanted: Annotated[RetryRequest | None, Body()] = None,
) -> Response:
    """Queues what is missing, of the other tasks of its workflow, too; finished rows are kept."""
    scope = (wanted or RetryRequest()).scope
    entries = api.tasks(task_id)
    if scope == "all":
        entries = tuple(api.ledger.workflow(entries[0].workflow_id))
    failed_rows = scope != "failed_shards"
    chosen = [each for each in entries if _can_retry(each, failed_rows=failed_rows)]
    if not chosen:
        raise Refusal(409, "nothing-to-retry", _why_not(task_id, entries, failed_rows=failed_rows))
    if entries[0].origin == "api":
        retried = api.ledger.retry([each.task_id for each in chosen], failed_rows=failed_rows)
    else:
        retried = _retry_run(api, task_id, failed_rows=failed_rows)
    workflow = api.ledger.workflow(entries[0].workflow_id)
    return reply(_changed(api, [each.task_id for each in workflow if each.task_id in retried]), 202)


def _cancel_run(api: State, name: str) -> None:
    """Stops what the dispatcher did not start, as Dagster's UI would."""
    from mloc_dagster.tasks import cancel

    try:
        cancel(api.fleet.instance(), name)
    except InputError as error:
        raise Refusal(409, "has-ended", str(error)) from None


def _retry_run(api: State, name: str, *, failed_rows: bool) -> set[str]:
    """Goes on with what the dispatcher did not start, as Dagster's UI would; returns the tasks."""
    from mloc_dagster.tasks import retry_task

    try:
        run_id = retry_task(api.fleet.instance(), name, failed_rows=failed_rows)
    except InputError as error:
        raise Refusal(409, "nothing-to-retry", str(error)) from None
    workflow_id = api.take_in(run_id) or name
    return {each.task_id for each in api.ledger.workflow(workflow_id) if each.run_id == run_id}


def _can_retry(entry: TaskEntry, *, failed_rows: bool) -> bool:
    if entry.state is TaskState.DONE:
        return failed_rows and bool(entry.errors)
    return entry.state.ended


def _why_not(task_id: str, entries: tuple[TaskEntry, ...], *, failed_rows: bool) -> str:
    if not all(each.state.ended for each in entries):
        return f"{task_id} is still at it ({_states(entries)}): wait for it, or cancel it first"
    if not failed_rows and any(each.errors for each in entries):
        return f"{task_id} is done; rows ended with errors: the scope 'failed_rows' retries these"
    return f"{task_id} is done: there is nothing to retry"


def _states(entries: tuple[TaskEntry, ...]) -> str:
    return ", ".join(dict.fromkeys(each.state.value for each in entries))


def _changed(api: State, ids: list[str]) -> ChangeReply:
    now = api.ledger.tasks(ids)
    tasks = tuple(
        ChangedTask(task_id=each, status=now[each].state, cancelling=now[each].cancelling)
        for each in ids
        if each in now
    )
    return ChangeReply(count=len(tasks), tasks=tasks)
