"""What users wish about tasks that were accepted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from sqlalchemy import ColumnElement, and_, any_, delete, func, or_, select, update
from sqlalchemy.engine import Connection

from mloc_dagster.ledger.database import (
    CHANNEL,
    documents,
    files,
    lock_tasks,
    may_delete_contents,
    runs,
    submissions,
    tasks,
)
from mloc_dagster.wire import ENDED, TaskState


def cancel(connection: Connection, ids: Collection[str]) -> Mapping[str, TaskState]:
    """Stops tasks; returns how they are then.

    What no run has is cancelled at once, with all that would share its run: a run of a workflow
    computes the whole of it, and what depends on a cancelled stage would wait for ever. Of the
    others the dispatcher learns that they are to be.
    """
    together = _workflows_of(connection, ids)
    lock_tasks(connection, together)
    alive = and_(tasks.c.task_id.in_(ids), tasks.c.state.not_in(ENDED))
    without_run = select(tasks.c.workflow_id).where(alive, tasks.c.run_id.is_(None))
    connection.execute(
        update(tasks)
        .where(
            tasks.c.task_id.in_(together),
            tasks.c.workflow_id.in_(without_run),
            tasks.c.state.not_in(ENDED),
            tasks.c.run_id.is_(None),
        )
        .values(
            state=TaskState.CANCELLED,
            ended_at=func.clock_timestamp(),
            waiting_for="",
            untold=True,
        )
    )
    connection.execute(
        update(tasks).where(alive, tasks.c.run_id.is_not(None)).values(cancelling=True)
    )
    _ring(connection)
    found = connection.execute(
        select(tasks.c.task_id, tasks.c.state).where(tasks.c.task_id.in_(ids))
    )
    return {task_id: TaskState(state) for task_id, state in found}


def retry(connection: Connection, ids: Collection[str], *, failed_rows: bool) -> set[str]:
    """Lets tasks wait for another run, with what is undone of their workflows.

    One run goes on with all of a workflow; returns the tasks that it can have.
    """
    together = _workflows_of(connection, ids)
    lock_tasks(connection, together)
    can = _can_be_retried(failed_rows=failed_rows)
    wanted = select(tasks.c.workflow_id).where(tasks.c.task_id.in_(ids), can)
    found = connection.scalars(
        update(tasks)
        .where(tasks.c.task_id.in_(together), tasks.c.workflow_id.in_(wanted), can)
        .values(
            state=TaskState.PENDING,
            run_id=None,
            ended_at=None,
            error="",
            waiting_for="",
            cancelling=False,
            untold=False,
            retry_rows=failed_rows,
        )
        .returning(tasks.c.task_id)
    )
    retried = set(found)
    _ring(connection)
    return retried


def _workflows_of(connection: Connection, ids: Collection[str]) -> Sequence[str]:
    """Returns the tasks of the workflows that some tasks are of; a workflow never gets more."""
    own = select(tasks.c.workflow_id).where(tasks.c.task_id.in_(ids))
    return connection.scalars(select(tasks.c.task_id).where(tasks.c.workflow_id.in_(own))).all()


def _can_be_retried(*, failed_rows: bool) -> ColumnElement[bool]:
    undone = tasks.c.state.in_([each for each in ENDED if each is not TaskState.DONE])
    if not failed_rows:
        return undone
    return or_(undone, and_(tasks.c.state == TaskState.DONE, tasks.c.errors > 0))


def forget(
    connection: Connection,
    ids: Collection[str],
    remove: Callable[[str], object],
    remove_document: Callable[[str], object],
) -> set[str]:
    """Deletes what is known of tasks that have ended; returns which.

    Args:
        connection: To the ledger.
        ids: The tasks.
        remove: Called for each before; meanwhile nobody can retry it.
        remove_document: Called with the hash of each document that no task has any more;
            meanwhile nobody can submit it.
    """
    lock_tasks(connection, ids)
    ended = and_(tasks.c.task_id.in_(ids), tasks.c.state.in_(ENDED))
    for task_id in connection.scalars(select(tasks.c.task_id).where(ended)).all():
        remove(task_id)
    gone = connection.execute(
        delete(tasks)
        .where(tasks.c.task_id.in_(ids), tasks.c.state.in_(ENDED))
        .returning(tasks.c.task_id, tasks.c.workflow_id, tasks.c.run_id)
    ).all()
    ids = {task_id for task_id, _, _ in gone}
    connection.execute(
        update(files).where(files.c.folder.in_(ids)).values(deleted=True, removed=True)
    )
    _delete_runs(connection, {run_id for _, _, run_id in gone})
    for content_hash in _delete_contents(connection, {workflow_id for _, workflow_id, _ in gone}):
        remove_document(content_hash)
    return ids


def _delete_runs(connection: Connection, run_ids: Collection[str]) -> None:
    """Deletes runs that have ended and of whose tasks none is left."""
    left = select(tasks.c.task_id).where(tasks.c.task_id == any_(runs.c.task_ids))
    connection.execute(delete(runs).where(runs.c.run_id.in_(run_ids), runs.c.ended, ~left.exists()))


def _delete_contents(connection: Connection, workflow_ids: Collection[str]) -> Sequence[str]:
    """Deletes submissions without tasks, documents without submissions; returns their hashes."""
    may_delete_contents(connection)
    left = select(tasks.c.workflow_id).where(tasks.c.workflow_id == submissions.c.workflow_id)
    contents = connection.scalars(
        delete(submissions)
        .where(submissions.c.workflow_id.in_(workflow_ids), ~left.exists())
        .returning(submissions.c.content_hash)
    )
    hashes = sorted(set(contents))
    used = select(submissions.c.content_hash).where(
        submissions.c.content_hash == documents.c.content_hash
    )
    return connection.scalars(
        delete(documents)
        .where(documents.c.content_hash.in_(hashes), ~used.exists())
        .returning(documents.c.content_hash)
    ).all()


def _ring(connection: Connection) -> None:
    connection.execute(select(func.pg_notify(CHANNEL, "wish")))
