"""Runs leave the queue in order of slack, and more of them keep their SLO than first come first."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, strategies as st

from benchmarks.slo_queue import simulate
from mloc_dagster.fleet.slo import (
    DEFAULT_SLO_S,
    PromisedRun,
    QueuedRun,
    estimate_s,
    late_s,
    latest_start_s,
    queue_order,
    raised_priorities,
    wanted_order,
)


def run(name: str, submitted: float, slo: float | None, **rest: float) -> QueuedRun:
    return QueuedRun(name, submitted, slo, **rest)  # type: ignore[arg-type]


def names(runs: list[QueuedRun]) -> list[str]:
    return [each.run_id for each in runs]


def raise_all(runs: list[QueuedRun], now: float) -> list[QueuedRun]:
    raised = raised_priorities(runs, now)
    return [replace(each, priority=raised.get(each.run_id, each.priority)) for each in runs]


def test_the_shortest_slack_goes_first() -> None:
    runs = [run("plain", 0, None), run("loose", 1, 600), run("long", 2, 70, estimate_s=60)]
    runs.append(run("tight", 3, 20))
    after = raise_all(runs, 5)
    assert names(queue_order(after)) == ["long", "tight", "loose", "plain"]
    assert raised_priorities(after, 6) == {}


def test_a_queue_without_slo_is_left_alone() -> None:
    assert raised_priorities([run("a", 0, None), run("b", 1, None, estimate_s=99)], 5) == {}


def test_an_order_that_is_right_is_left_alone() -> None:
    assert raised_priorities([run("a", 0, 10), run("b", 1, 10), run("c", 2, None)], 5) == {}


def test_a_newcomer_moves_nobody_else() -> None:
    queue = raise_all([run("c", 0, 90), run("b", 1, 60), run("a", 2, 30)], 3)
    queue.append(run("between", 4, 40))
    assert list(raised_priorities(queue, 5)) == ["between"]
    assert names(queue_order(raise_all(queue, 5))) == ["a", "between", "b", "c"]


def test_priorities_of_people_are_left_alone() -> None:
    mine = run("mine", 0, None, priority=5, pinned=True)
    raised = raised_priorities([mine, run("loose", 1, 600), run("tight", 2, 5)], 3)
    assert list(raised) == ["tight"]


def test_a_late_run_does_not_make_others_late_and_does_not_wait_for_ever() -> None:
    late, tight = run("late", 0, 10, estimate_s=5), run("tight", 4, 12, estimate_s=5)
    loose = run("loose", 4, 60, estimate_s=5)
    assert names(wanted_order([late, tight, loose], 5)) == ["late", "tight", "loose"]
    assert names(wanted_order([late, tight, loose], 6)) == ["tight", "late", "loose"]
    for now in range(10, 100_000, 997):
        assert now <= latest_start_s(late, now) <= 2 * (now + late.estimate_s)


def test_a_run_without_slo_gets_its_turn() -> None:
    old = run("old", 0, None)
    urgent = run("urgent", DEFAULT_SLO_S, 60)
    assert names(wanted_order([old, urgent], DEFAULT_SLO_S + 1)) == ["urgent", "old"]
    fresh = run("fresh", DEFAULT_SLO_S - 30, 600)
    assert names(wanted_order([old, fresh], DEFAULT_SLO_S - 1)) == ["old", "fresh"]


queues = st.lists(
    st.builds(
        QueuedRun,
        run_id=st.uuids().map(str),
        submitted_s=st.floats(0, 1000),
        slo_s=st.none() | st.floats(1, 5000),
        estimate_s=st.floats(0, 300),
        priority=st.integers(-3, 200),
        pinned=st.booleans(),
    ),
    max_size=12,
)


@given(queues, st.floats(1000, 10_000))
def test_whatever_the_queue_its_order_is_right_afterwards(
    queue: list[QueuedRun], now: float
) -> None:
    queue.sort(key=lambda each: each.submitted_s)
    after = raise_all(queue, now)
    for old, new in zip(queue, after, strict=True):
        assert new.priority >= old.priority
        assert not (old.pinned and new != old)
    free = [each for each in after if not each.pinned]
    if any(each.slo_s is not None for each in free):
        assert queue_order(free) == wanted_order(free, now)


def test_lateness_ends_with_the_run() -> None:
    assert late_s(PromisedRun("r", 100, 10), 109) == 0
    assert late_s(PromisedRun("r", 100, 10), 115) == 5
    assert late_s(PromisedRun("r", 100, 10, ended_s=112), 500) == 2
    assert late_s(PromisedRun("r", 100, 10, ended_s=109), 500) == 0


def test_an_estimate_is_the_median() -> None:
    assert estimate_s([9, 1, 2, 100, 3]) == 3
    assert estimate_s([], fallback_s=7) == 7


def test_fewer_slos_are_missed_than_first_come_first_served() -> None:
    for seed in range(5):
        by_slack = simulate(random.Random(seed), reorder=True)
        first_come = simulate(random.Random(seed), reorder=False)
        assert by_slack.runs == first_come.runs
        assert by_slack.missed < first_come.missed
