"""Tasks that failed for good, with what a person needs to decide."""

from __future__ import annotations

from mloc_dagster.api.state import ApiState
from mloc_dagster.ledger.model import TaskEntry, TaskFilter
from mloc_dagster.wire import DeadLetterPage, DeadLetterView, TaskState


def dead_letters(api: ApiState, limit: int, cursor: str | None) -> DeadLetterPage:
    """Returns the latest tasks that failed for good."""
    chosen = TaskFilter(states=(TaskState.DEAD,))
    entries, following = api.ledger.list(chosen, limit=limit, cursor=cursor)
    letters = tuple(_letter(api, each) for each in entries)
    return DeadLetterPage(count=len(letters), dead_letters=letters, next_cursor=following)


def _letter(api: ApiState, entry: TaskEntry) -> DeadLetterView:
    missing = None if entry.rows is None else max(0, entry.rows - (entry.rows_finished or 0))
    fields: dict[str, object] = {
        "task_id": entry.task_id,
        "workflow_id": entry.workflow_id,
        "run_id": entry.run_id,
        "template": entry.template,
        "node": entry.node,
        "owner": entry.owner,
        "failed_at": entry.ended_at,
        "reason": entry.error or "its run failed",
        "rows": entry.rows,
        "rows_finished": entry.rows_finished,
        "rows_missing": missing,
        "errors": entry.errors,
    }
    if entry.run_id is not None and entry.batch_key is None:
        fields |= _of_run(api, entry, entry.run_id)
    return DeadLetterView.model_validate(fields)


def _of_run(api: ApiState, entry: TaskEntry, run_id: str) -> dict[str, object]:
    """Returns which shards of a run failed, how often, and what they said last."""
    from mloc_dagster.tasks.dead_letters import failed_steps
    from mloc_dagster.tasks.steps import failures_of, steps_of
    from mloc_dagster.tasks.workflows import workflows

    instance = api.fleet.instance()
    workflow = workflows(instance, [entry.workflow_id]).get(entry.workflow_id)
    if workflow is None:
        return {}
    task = next((each for each in workflow.tasks() if each.task_id == entry.task_id), None)
    if task is None:
        return {}
    failures = failures_of(instance, run_id, task)
    steps = steps_of(instance, [workflow.latest])
    return dict(failed_steps(failures, steps, api.store.task(entry.task_id)))
