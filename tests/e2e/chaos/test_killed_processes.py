"""Any one process of the stack is killed in the middle of a task."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest

from tests.e2e.chaos.task import SHARDS, Task
from tests.e2e.chaos.verdict import Rows, check
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

Measure = Callable[[str, float], None]


def worker_name(stack: Stack, number: int) -> str:
    return f"{stack.plan.worker_prefix}-{number}"


def test_one_worker(stack: Stack, task: Task, expected: Rows, measured: Measure) -> None:
    task.wait_done(3)
    (lost,) = task.wait_held(worker_name(stack, 1))
    stack.kill("worker-1")
    killed = monotonic()
    task.wait_reclaimed(lost)
    measured("one worker: its shard is claimed again", monotonic() - killed)
    check(task, expected, moved=[lost])


def test_all_workers_at_once(stack: Stack, task: Task, expected: Rows, measured: Measure) -> None:
    task.wait_done(3)
    lost = task.wait_held(worker_name(stack, 1), worker_name(stack, 2))
    stack.kill("worker-1")
    stack.kill("worker-2")
    killed = monotonic()
    task.wait_reclaimed(lost[0])
    measured("all workers: the first shard is claimed again", monotonic() - killed)
    check(task, expected, moved=lost)


@pytest.mark.parametrize("shards", [0, 3, SHARDS])
def test_the_run_worker(
    shards: int, stack: Stack, task: Task, expected: Rows, measured: Measure
) -> None:
    fence = until(task.run_fence, "the run is claimed")
    if shards == SHARDS:
        # What comes after the last shard takes less time than a look at the stream: the run worker
        # stands still before its workers are done, or there may be no run left to claim again.
        task.wait_done(SHARDS - 2)
        stack.freeze("runs-1")
    task.wait_done(shards)
    stack.kill("runs-1")
    killed = monotonic()
    until(lambda: task.run_fence() not in ("", fence), "the run is claimed again")
    measured(f"the run worker after {shards} shards: claimed again", monotonic() - killed)
    check(task, expected)


@pytest.mark.parametrize("taken_out", [False, True])
def test_the_daemon_before_it_hands_the_run_over(
    taken_out: bool,
    stack: Stack,
    idle_stack: None,
    expected: Rows,
    measured: Measure,
) -> None:
    stack.freeze("daemon")
    task = Task.launch(stack)
    if taken_out:
        task.take_out()
    assert task.status() == ("STARTING" if taken_out else "QUEUED")
    stack.kill("daemon")
    killed = monotonic()
    until(task.run_fence, "the run is claimed")
    what = "a run it had just taken out" if taken_out else "a waiting run"
    measured(f"daemon: {what} is claimed", monotonic() - killed)
    check(task, expected)


@pytest.mark.parametrize("name", ["daemon", "code", "webserver", "redis", "postgres"])
def test_one_service(
    name: str, stack: Stack, task: Task, expected: Rows, measured: Measure
) -> None:
    task.wait_done(3)
    done = len(task.logged("STEP_SUCCESS"))
    before = stack.kill(name)
    killed = monotonic()
    task.wait_more(done)
    measured(f"{name}: a shard is done", monotonic() - killed)
    stack.wait_running(name, not_pid=before)
    measured(f"{name}: it answers again", monotonic() - killed)
    check(task, expected)
