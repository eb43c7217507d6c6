"""The whole stack is killed, or stopped as it should be, and `mloc up` goes on."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest

from tests.e2e.chaos.task import Task
from tests.e2e.chaos.verdict import Rows, check
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Measure = Callable[[str, float], None]


def test_everything_at_once(stack: Stack, task: Task, expected: Rows, measured: Measure) -> None:
    task.wait_done(3)
    names = [f"{stack.plan.worker_prefix}-{number}" for number in (1, 2)]
    lost, fence = task.wait_held(*names), task.run_fence()
    stack.kill_all()
    begun = monotonic()
    stack.start()
    measured("the whole stack: `mloc up` says that it is up", monotonic() - begun)
    # Where starting takes long, the run has ended by the time that everything answers.
    ended = lambda: task.status() == "SUCCESS"  # noqa: E731
    until(lambda: ended() or task.run_fence() not in ("", fence), "the run is claimed again")
    for each in lost:
        if not ended():
            task.wait_reclaimed(each)
    measured("the whole stack: every lost shard is claimed again", monotonic() - begun)
    check(task, expected, moved=lost)


def test_a_stop_and_a_start(stack: Stack, task: Task, expected: Rows, measured: Measure) -> None:
    """Goes on with the lease that users have, with which a worker is lost then."""
    task.wait_done(3)
    stack.stop()
    short = stack.environment.pop("MLOC_LEASE_TTL_S")
    stack.start()
    stack.environment["MLOC_LEASE_TTL_S"] = short
    check(task, expected, moved=[])

    another = Task.launch(stack)
    another.wait_done(3)
    (lost,) = another.wait_held(f"{stack.plan.worker_prefix}-1")
    stack.kill("worker-1")
    killed = monotonic()
    another.wait_reclaimed(lost)
    measured("one worker, lease of 10 s: its shard is claimed again", monotonic() - killed)
    check(another, expected, moved=[lost])
