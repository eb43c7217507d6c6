"""Cursors, and several changes of one task."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.ledger.dispatching import merged
from mloc_dagster.ledger.model import TaskChange
from mloc_dagster.ledger.queries import place_of
from mloc_dagster.wire import TaskState


@pytest.mark.parametrize("place", [0, 1, 110_000, 10**17])
def test_a_cursor_says_where_a_page_goes_on(place: int) -> None:
    assert place_of(str(place)) == place


@pytest.mark.parametrize(
    "cursor", ["", "x", "-1", "1.5", " 1", "1e3", "٣", "²", "9" * 19, "1;DROP", "\0"]
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InputError, match="is no cursor; expected the `next` of an earlier page"):
        place_of(cursor)


def change(state: TaskState | None = None, run_id: str = "run", **more: object) -> TaskChange:
    return TaskChange(task_id="task", run_id=run_id, state=state, **more)  # type: ignore[arg-type]


def test_a_later_change_of_a_task_says_more() -> None:
    first, second = (datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2))
    (found,) = merged(
        [
            change(TaskState.RUNNING, started_at=first, rows=3, worker_id="a"),
            change(TaskState.DONE, started_at=second, worker_id="b"),
        ]
    )
    assert found == {
        "task_id": "task",
        "run_id": "run",
        "state": TaskState.DONE,
        "started_at": first,
        "rows": 3,
        "worker_id": "b",
    }


@pytest.mark.parametrize(
    ("first", "second", "then"),
    [
        (TaskState.DONE, TaskState.RUNNING, TaskState.DONE),
        (TaskState.CANCELLED, TaskState.DEAD, TaskState.CANCELLED),
        (TaskState.FAILED, TaskState.RUNNING, TaskState.FAILED),
        (TaskState.FAILED, TaskState.DEAD, TaskState.DEAD),
    ],
)
def test_a_task_that_ended_stays_ended(
    first: TaskState, second: TaskState, then: TaskState
) -> None:
    (found,) = merged([change(first), change(second)])
    assert found["state"] is then


def test_changes_of_two_runs_stay_apart() -> None:
    found = merged([change(TaskState.DEAD, "old"), change(TaskState.RUNNING, "new")])
    assert [each["state"] for each in found] == [TaskState.DEAD, TaskState.RUNNING]
