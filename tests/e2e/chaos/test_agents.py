"""200 agents are at work while what they work with is killed: nothing is written twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Collection

import pytest

from tests.e2e.chaos.agents import ROWS, SHARDS, Agents, servers_of
from tests.e2e.chaos.task import Holding
from tests.e2e.chaos.verdict import Rows, check_story
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CUT_OFF = "it may have been done or not"


@pytest.fixture(scope="module")
def undisturbed(stack: Stack) -> Rows:
    """The rows of a task that nothing happened to."""
    agents = Agents.launch(stack)
    agents.task.wait_success()
    rows = agents.task.rows()
    answers = [f"row {index} seen, written seen: done" for index in range(ROWS)]
    assert [row["output"] for row in rows] == answers
    assert len(list(agents.task.folder.glob("shards/0*"))) == SHARDS
    return rows


@pytest.fixture
def agents(stack: Stack, undisturbed: Rows, idle_stack: None) -> Agents:
    return Agents.launch(stack)


def check_agents(
    agents: Agents,
    undisturbed: Rows,
    *,
    cut: Collection[int] = (),
    moved: Collection[Holding] = (),
    ghost: bool = False,
) -> list[str]:
    """Asserts that each row is as it should be, and that nothing was done twice.

    Args:
        agents: The task; it may still run.
        undisturbed: The rows of one that nothing happened to.
        cut: Rows whose call that writes may have been cut off: their outcome may be unknown.
        moved: Claims that were lost.
        ghost: Whether a worker lived on that had lost its claim; it notes what it is at.

    Returns:
        What became of rows that are not as they should be.
    """
    agents.task.wait_success()
    rows = agents.task.rows()
    assert [row["index"] for row in rows] == list(range(ROWS))
    other = [each for each in range(ROWS) if rows[each] != undisturbed[each]]
    assert set(other) <= set(cut)
    written = Counter(each["row"] for each in agents.written())
    assert set(written.values()) == {1}
    assert set(range(ROWS)) - set(written) <= set(cut)
    noted = [each for each in agents.journal() if each["type"] == "result"]
    times = Counter((each["index"], each["turn"]) for each in noted if each["tool"] == "look")
    assert set(times.values()) == {1} or ghost
    assert len(times) >= 2 * (ROWS - len(cut)) + len(cut)
    check_story(agents.task, moved=moved)
    return [f"{rows[i]['error']} {rows[i]['output']}" for i in other]


def worker(stack: Stack, number: int = 1) -> str:
    return f"{stack.plan.worker_prefix}-{number}"


def test_a_worker_is_killed(stack: Stack, agents: Agents, undisturbed: Rows) -> None:
    lost = agents.wait_writing(worker(stack))
    stack.kill("worker-1")
    cut = agents.in_flight(lost.shard)
    said = check_agents(agents, undisturbed, cut=cut, moved=[lost])
    assert len(said) == len(cut)
    assert all("outcome unknown" in each for each in said)


def test_a_worker_stands_still_and_goes_on_beside_its_successor(
    stack: Stack, agents: Agents, undisturbed: Rows
) -> None:
    lost = agents.wait_writing(worker(stack))
    pid = stack.freeze("worker-1")
    try:
        cut = agents.in_flight(lost.shard)
        agents.task.wait_reclaimed(lost)
        successor = lambda: list(agents.task.folder.glob(f"journal/{lost.shard}/attempts/0002-*"))  # noqa: E731
        until(successor, "another worker has read what was noted")
    finally:
        os.kill(pid, signal.SIGCONT)
    said = check_agents(agents, undisturbed, cut=cut, moved=[lost], ghost=True)
    assert all("outcome unknown" in each for each in said)


def test_tools_are_killed(stack: Stack, agents: Agents, undisturbed: Rows) -> None:
    agents.wait_writing(worker(stack))
    killed = servers_of(stack.pid("worker-1"))
    assert len(killed) == 2
    for each in killed:
        each.kill()
    agents.task.wait_success()
    # What is sent until the death is seen is lost with what was on its way.
    cut = agents.told(CUT_OFF)
    assert len(cut) < ROWS / SHARDS
    said = check_agents(agents, undisturbed, cut=cut)
    assert len(said) == len(cut)
    assert all(CUT_OFF in each for each in said)


def test_redis_is_killed(stack: Stack, agents: Agents, undisturbed: Rows) -> None:
    agents.wait_writing(worker(stack))
    before = stack.kill("redis")
    stack.wait_running("redis", not_pid=before)
    assert check_agents(agents, undisturbed) == []
