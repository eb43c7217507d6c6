"""What must be true of a task, whatever was killed while it ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tests.e2e.chaos.task import Holding, Task
from tests.e2e.stack import until

Rows = list[dict[str, object]]

# The sensor that tells of what nobody else could tell looks every five seconds at least.
_TOLD_WITHIN_S = 15.0


def check(task: Task, expected: Rows, *, moved: Iterable[Holding] = (), retries: int = 0) -> None:
    """Asserts that nothing shows of what happened, but for who did the work.

    Args:
        task: The task; it may still run.
        expected: The rows of an undisturbed one.
        moved: Claims that were lost; the event stream tells of each.
        retries: Failed attempts that the test meant to happen.
    """
    task.wait_success()
    rows = task.rows()
    assert [row["index"] for row in rows] == list(range(len(expected)))
    assert rows == expected
    check_story(task, moved=moved, retries=retries)


def check_story(task: Task, *, moved: Iterable[Holding] = (), retries: int = 0) -> None:
    """Asserts that Dagster's log and the event stream tell of a task as if nothing had happened.

    Args:
        task: The task, which has ended.
        moved: Claims that were lost.
        retries: Failed attempts.
    """
    every = [f"{number:04d}" for number in range(task.shards)]
    assert sorted(shard for shard, _ in task.logged("STEP_SUCCESS")) == every
    assert len(task.logged("STEP_UP_FOR_RETRY")) == retries
    assert task.logged("STEP_FAILURE") == []
    _check_story(task, {each.shard for each in moved}, retries)


def _check_story(task: Task, moved: set[str], retries: int) -> None:
    """Asserts that the event stream tells every fact, each once, in an order that makes sense."""

    def told() -> bool:
        all_done = task.count("SHARD_SUCCEEDED") >= task.shards and task.count("TASK_SUCCEEDED") > 0
        return all_done and moved <= task.requeued()

    until(told, f"the end of the story, {sorted(moved)} moved in it", _TOLD_WITHIN_S)
    facts = [each for each in task.events() if not each.is_momentary]
    ids = Counter(each.event_id for each in facts)
    assert [each for each, times in ids.items() if times > 1] == []
    kinds = Counter(str(each.type) for each in facts)
    assert kinds["TASK_SUBMITTED"] == kinds["TASK_STARTED"] == kinds["TASK_SUCCEEDED"] == 1
    assert kinds["SHARD_SUCCEEDED"] == task.shards
    assert kinds["SHARD_STARTED"] == task.shards + retries
    assert kinds["SHARD_FAILED"] == retries
    assert kinds["TASK_FAILED"] == 0
    started = {each.shard.index for each in facts if each.shard and each.type == "SHARD_STARTED"}
    assert started == set(range(task.shards))
    assert max(facts, key=lambda each: each.ts).type == "TASK_SUCCEEDED"
