"""Which waiting tasks form the next runs."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from hypothesis import given, strategies as st

from mloc_dagster.dispatch.batching import (
    MOST_AT_ONCE,
    MOST_TASKS,
    WINDOW,
    Group,
    by_slack,
    next_groups,
)
from mloc_dagster.ledger import TaskEntry

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def task(
    number: int,
    key: str | None = None,
    *,
    age_s: float = 0.0,
    slo_s: float | None = None,
    runs: int = 0,
    workflow: str | None = None,
) -> TaskEntry:
    submitted = NOW - timedelta(seconds=age_s)
    return TaskEntry(
        task_id=f"t{number}",
        workflow_id=workflow or f"t{number}",
        node="n",
        task_type="echo",
        template="small",
        batch_key=key,
        runs=runs,
        submitted_at=submitted,
        due=None if slo_s is None else submitted + timedelta(seconds=slo_s),
        place=number,
    )


def ids(groups: list[Group]) -> list[list[str]]:
    return [[each.task_id for each in group.tasks] for group in groups]


TASKS = st.lists(
    st.builds(
        dict,
        key=st.sampled_from([None, "a", "b"]),
        age_s=st.floats(0, 5),
        slo_s=st.sampled_from([None, 0.5, 10.0]),
        runs=st.integers(0, 1),
    ),
    max_size=40,
).map(lambda drawn: [task(number, **each) for number, each in enumerate(drawn)])
BUSY = st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, MOST_AT_ONCE))


@given(TASKS, BUSY, st.integers(-2, 50))
def test_groups_never_mix_keys_nor_repeat_tasks_nor_pass_the_limits(
    waiting: list[TaskEntry], busy: dict[str, int], slots: int
) -> None:
    groups = next_groups(waiting, busy, NOW, slots=slots)
    assert len(groups) <= max(0, slots)
    chosen = [each.task_id for group in groups for each in group.tasks]
    assert len(chosen) == len(set(chosen))
    for group in groups:
        assert 1 <= len(group.tasks) <= MOST_TASKS
        if group.batch_key is None:
            assert len(group.tasks) == 1
        assert all(each.batch_key == group.batch_key for each in group.tasks if group.batch_key)
    of_key = Counter(each.batch_key for each in groups if each.batch_key)
    assert all(count + busy.get(key, 0) <= MOST_AT_ONCE for key, count in of_key.items())


@given(TASKS, BUSY)
def test_the_order_of_urgency_is_kept_in_and_among_groups(
    waiting: list[TaskEntry], busy: dict[str, int]
) -> None:
    groups = next_groups(waiting, busy, NOW, slots=100)
    place = {each.task_id: number for number, each in enumerate(waiting)}
    heads = [place[group.tasks[0].task_id] for group in groups]
    assert heads == sorted(heads)
    for group in groups:
        inside = [place[each.task_id] for each in group.tasks]
        assert inside == sorted(inside)


@given(TASKS)
def test_idle_everything_goes_at_once(waiting: list[TaskEntry]) -> None:
    groups = next_groups(waiting, {}, NOW, slots=100)
    assert {each.task_id for group in groups for each in group.tasks} == {
        each.task_id for each in waiting
    }


@given(TASKS, st.integers(0, MOST_AT_ONCE - 1))
def test_a_window_always_closes(waiting: list[TaskEntry], busy: int) -> None:
    """Whatever is computed meanwhile: a second later nothing waits but for its turn."""
    groups = next_groups(waiting, {"a": busy, "b": busy}, NOW + WINDOW, slots=100)
    assert {each.task_id for group in groups for each in group.tasks} == {
        each.task_id for each in waiting
    }


def test_loaded_small_tasks_wait_for_others_of_their_kind() -> None:
    waiting = [task(n, "a", age_s=0.4) for n in range(3)]
    assert next_groups(waiting, {"a": 1}, NOW, slots=10) == []
    assert ids(next_groups(waiting, {"b": 1}, NOW, slots=10)) == [["t0", "t1", "t2"]]
    full = [task(n, "a") for n in range(MOST_TASKS + 3)]
    (batch,) = next_groups(full, {"a": 1}, NOW, slots=10)
    assert len(batch.tasks) == MOST_TASKS


def test_what_is_retried_goes_alone() -> None:
    waiting = [task(0, "a"), task(1, "a", runs=1), task(2, "a")]
    assert ids(next_groups(waiting, {}, NOW, slots=10)) == [["t0", "t2"], ["t1"]]


def test_a_workflow_is_one_group_however_many_of_its_tasks_wait() -> None:
    waiting = [task(0, workflow="w"), task(1, workflow="w"), task(2)]
    assert ids(next_groups(waiting, {}, NOW, slots=10)) == [["t0"], ["t2"]]


def test_tasks_go_by_how_long_they_can_wait() -> None:
    patient, hurried, late = task(0, age_s=1), task(1, slo_s=5), task(2, age_s=9, slo_s=8)
    assert by_slack([patient, hurried, late], NOW) == [hurried, late, patient]


def test_a_clock_that_is_behind_makes_no_task_wait_for_ever() -> None:
    odd = task(0, age_s=100, slo_s=-3)
    assert by_slack([odd], NOW) == [odd]
