"""What the dispatcher reads and writes: which tasks wait, which runs there are, what is new."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import case, delete, func, insert, or_, select, text, update
from sqlalchemy.engine import Connection

from mloc_dagster.ledger.acceptance import take_in
from mloc_dagster.ledger.database import followed, lock_tasks, runs, tasks
from mloc_dagster.ledger.model import FoundWorkflow, PlannedRun, TaskChange, TaskEntry
from mloc_dagster.ledger.queries import ENTRY, entry_of
from mloc_dagster.wire import ENDED, TaskState


def waiting(connection: Connection, limit: int, without: Collection[str]) -> Sequence[TaskEntry]:
    """Returns tasks that wait for a run: by the time that they are due, then by age."""
    wanted = or_(
        tasks.c.batch_key.is_(None), tasks.c.runs > 0, tasks.c.batch_key.not_in(list(without))
    )
    found = connection.execute(
        select(*ENTRY)
        .where(tasks.c.run_id.is_(None), tasks.c.state == TaskState.PENDING, wanted)
        .order_by(tasks.c.due.asc().nulls_last(), tasks.c.place)
        .limit(limit)
    )
    return [entry_of(row) for row in found]


_ASSIGN = text("""
    UPDATE mloc.tasks AS task
    SET run_id = given.run_id,
        runs = task.runs + 1,
        waiting_for = '',
        state = CASE task.state WHEN 'PENDING' THEN 'DISPATCHED' ELSE task.state END
    FROM unnest(CAST(:task_ids AS text[]), CAST(:run_ids AS text[])) AS given (task_id, run_id)
    WHERE task.task_id = given.task_id
      AND task.run_id IS NULL
      AND task.state IN ('PENDING', 'WAITING')
    RETURNING task.task_id, task.run_id
""")


def plan_runs(connection: Connection, planned: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Gives tasks their runs; returns the runs with the tasks that nobody cancelled meanwhile."""
    pairs = [(task, each.run_id) for each in planned for task in each.task_ids]
    if not pairs:
        return []
    lock_tasks(connection, [task for task, _ in pairs])
    assigned: defaultdict[str, set[str]] = defaultdict(set)
    ids, run_ids = map(list, zip(*pairs, strict=True))
    for task_id, run_id in connection.execute(_ASSIGN, {"task_ids": ids, "run_ids": run_ids}):
        assigned[run_id].add(task_id)
    real = [
        PlannedRun(
            run_id=each.run_id,
            workflow_id=each.workflow_id,
            task_ids=tuple(task for task in each.task_ids if task in assigned[each.run_id]),
            retry_rows=each.retry_rows,
        )
        for each in planned
        if assigned[each.run_id]
    ]
    if real:
        columns = ("run_id", "workflow_id", "task_ids", "retry_rows")
        rows = [{name: getattr(each, name) for name in columns} for each in real]
        connection.execute(
            insert(runs), [{**row, "task_ids": list(row["task_ids"])} for row in rows]
        )
    return real


def handed_over(connection: Connection, run_ids: Collection[str]) -> None:
    """Notes that the fleet has runs."""
    connection.execute(update(runs).where(runs.c.run_id.in_(run_ids)).values(handed_over=True))


def end_runs(connection: Connection, run_ids: Collection[str]) -> None:
    """Notes that nothing more will come of runs."""
    connection.execute(update(runs).where(runs.c.run_id.in_(run_ids)).values(ended=True))


def give_back(connection: Connection, run_id: str) -> None:
    """Ends a run; its tasks that have not ended wait for others, unless they are not wanted."""
    given = connection.scalar(select(runs.c.task_ids).where(runs.c.run_id == run_id)) or []
    lock_tasks(connection, given)
    unwanted = case((tasks.c.cancelling, TaskState.CANCELLED), else_=TaskState.PENDING)
    connection.execute(
        update(tasks)
        .where(tasks.c.task_id.in_(given), tasks.c.run_id == run_id, tasks.c.state.not_in(ENDED))
        .values(
            state=unwanted,
            ended_at=case((tasks.c.cancelling, func.clock_timestamp())),
            untold=tasks.c.cancelling,
            cancelling=False,
            run_id=None,
        )
    )
    end_runs(connection, [run_id])


def adopt(connection: Connection, found: FoundWorkflow) -> PlannedRun | None:
    """Makes the newest run of a workflow that of its tasks; see `Ledger.adopt`."""
    newest = found.runs[-1]
    known = set(connection.scalars(select(runs.c.run_id).where(runs.c.run_id.in_(found.runs))))
    if newest in known:
        return None
    take_in(connection, found)
    of_workflow = tasks.c.workflow_id == found.workflow_id
    lock_tasks(connection, connection.scalars(select(tasks.c.task_id).where(of_workflow)).all())
    free = or_(tasks.c.run_id.is_(None), tasks.c.state.in_(ENDED))
    taken = connection.scalars(
        update(tasks)
        .where(of_workflow, tasks.c.state != TaskState.DONE, free)
        .values(
            state=TaskState.DISPATCHED,
            run_id=newest,
            runs=tasks.c.runs + 1,
            ended_at=None,
            error="",
            waiting_for="",
            cancelling=False,
            untold=False,
        )
        .returning(tasks.c.task_id)
    ).all()
    # Known from now on, or they would be taken for new when their tasks wait for another one.
    earlier = [each for each in found.runs[:-1] if each not in known]
    taken_by = {**dict.fromkeys(earlier, ()), newest: tuple(taken)}
    connection.execute(
        insert(runs),
        [
            {
                "run_id": run_id,
                "workflow_id": found.workflow_id,
                "task_ids": list(task_ids),
                "handed_over": True,
                "ended": not task_ids,
            }
            for run_id, task_ids in taken_by.items()
        ],
    )
    adopted = PlannedRun(
        run_id=newest, workflow_id=found.workflow_id, task_ids=tuple(taken), handed_over=True
    )
    return adopted if taken else None


def followed_to(connection: Connection, place: int | None) -> int:
    """Returns how far Dagster's runs have been looked through; see `Ledger.followed_to`."""
    known = connection.scalar(select(func.max(followed.c.place))) or 0
    if place is None or place <= known:
        return known
    connection.execute(delete(followed))
    connection.execute(insert(followed).values(place=place))
    return place


def unknown_runs(connection: Connection, run_ids: Collection[str]) -> set[str]:
    """Returns the runs that the ledger has not heard of."""
    known = select(runs.c.run_id).where(runs.c.run_id.in_(run_ids))
    return set(run_ids) - set(connection.scalars(known))


def told(connection: Connection, ids: Collection[str]) -> None:
    """Notes that it was told of tasks that they were cancelled."""
    connection.execute(update(tasks).where(tasks.c.task_id.in_(ids)).values(untold=False))


def open_runs(connection: Connection) -> Sequence[PlannedRun]:
    """Returns the runs that have not ended, oldest first."""
    columns = (runs.c.run_id, runs.c.workflow_id, runs.c.task_ids, runs.c.handed_over)
    found = connection.execute(
        select(*columns, runs.c.retry_rows).where(~runs.c.ended).order_by(runs.c.place)
    )
    return [PlannedRun(**{**row, "task_ids": tuple(row["task_ids"])}) for row in found.mappings()]


_CHANGE = text("""
    UPDATE mloc.tasks AS task
    SET state = coalesce(new.state, task.state),
        waiting_for = coalesce(new.waiting_for, task.waiting_for),
        started_at = coalesce(task.started_at, new.started_at),
        ended_at = coalesce(
            new.ended_at,
            task.ended_at,
            CASE WHEN new.state = ANY (:ended) THEN clock_timestamp() END
        ),
        worker_id = coalesce(new.worker_id, task.worker_id),
        rows = coalesce(new.rows, task.rows),
        rows_finished = coalesce(new.rows_finished, task.rows_finished),
        errors = coalesce(new.errors, task.errors),
        error = coalesce(new.error, task.error),
        cancelling = task.cancelling AND NOT coalesce(new.state = ANY (:ended), false),
        retry_rows = task.retry_rows AND NOT coalesce(new.state = ANY (:ended), false)
    FROM jsonb_to_recordset(CAST(:changes AS jsonb)) AS new (
        task_id text, run_id text, state text, waiting_for text, started_at timestamptz,
        ended_at timestamptz, worker_id text, rows integer, rows_finished integer, errors integer,
        error text
    )
    WHERE task.task_id = new.task_id
      AND task.run_id = new.run_id
      AND (task.state <> ALL (:ended) OR (task.state = 'FAILED' AND new.state = 'DEAD'))
""")


def change(connection: Connection, changes: Sequence[TaskChange]) -> None:
    """Writes what is new about tasks whose newest run says so, unless they have ended."""
    lock_tasks(connection, [each.task_id for each in changes])
    given = json.dumps([_plain(each) for each in merged(changes)])
    connection.execute(_CHANGE, {"changes": given, "ended": [str(each) for each in ENDED]})


def merged(changes: Sequence[TaskChange]) -> list[dict[str, object]]:
    """Returns one change a task and run: an `UPDATE` would take any of several.

    A later one says more, unless the task has ended with the one before.
    """
    found: dict[tuple[str, str], dict[str, object]] = {}
    for each in changes:
        before = found.setdefault((each.task_id, each.run_id), {})
        state = before.get("state")
        dies = state is TaskState.FAILED and each.state is TaskState.DEAD
        if state in ENDED and not dies:
            continue
        news = {name: value for name, value in asdict(each).items() if value is not None}
        if "started_at" in before:
            news.pop("started_at", None)
        before.update(news)
    return list(found.values())


def _plain(fields: Mapping[str, object]) -> dict[str, object]:
    # PostgreSQL's text holds no NUL, and reasons come from anywhere.
    return {
        name: value.replace("\0", "�")
        if isinstance(value, str)
        else value
        if value is None or isinstance(value, int)
        else str(value)
        for name, value in fields.items()
    }
