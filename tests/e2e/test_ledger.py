"""The ledger on a real PostgreSQL: what it accepts it keeps, once, whoever asks meanwhile."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import create_engine, text

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.ledger import (
    Accepted,
    KeyReused,
    Ledger,
    NewTask,
    PlannedRun,
    TaskChange,
    TaskFilter,
    transaction,
)
from mloc_dagster.services import AdvisoryLock
from mloc_dagster.wire import TaskState
from tests.e2e.ledger_database import accepted, own_database, planned, submission

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def url(session_instance: dg.DagsterInstance, session_home: Path) -> str:
    return own_database(session_home, "ledger")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url)
    yield opened
    opened.close()


def test_what_was_accepted_is_there_for_another_process(ledger: Ledger, url: str) -> None:
    (task_id,) = accepted(ledger, submission("kept"))
    other = Ledger.open(url)
    entry = other.task(task_id)
    assert entry is not None
    assert (entry.state, entry.owner, entry.labels) == (TaskState.PENDING, "me", {"team": "a"})
    assert other.document(task_id) == {"metadata": {"name": "kept"}, "text": "a\0b"}
    other.close()


def test_processes_may_create_the_tables_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        for opened in pool.map(lambda _: Ledger.open(url), range(4)):
            opened.close()


def test_a_request_key_is_accepted_once_whoever_comes_first(ledger: Ledger) -> None:
    key, barrier = str(uuid.uuid4()), threading.Barrier(8)

    def race(_: int) -> Accepted:
        mine = submission("raced", key)
        barrier.wait()
        (answer,) = ledger.accept([mine])
        assert isinstance(answer, Accepted)
        return answer

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    assert sum(each.new for each in answers) == 1
    assert len({each.workflow_id for each in answers}) == 1
    (other,) = ledger.accept([submission("another", key)])
    assert isinstance(other, KeyReused)
    twice = ledger.accept([submission("twice", "twice"), submission("twice", "twice")])
    assert [isinstance(each, Accepted) and each.new for each in twice] == [True, False]


def test_a_lost_connection_is_told_and_the_next_call_goes_on(ledger: Ledger, url: str) -> None:
    (before,) = accepted(ledger, submission("before"))
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    away = pytest.raises(TransientError, match="the database is away")
    with admin.connect() as connection, away, transaction(ledger._engine) as lost:
        connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}"))
        lost.execute(text("SELECT 1"))
    admin.dispose()
    assert ledger.task(before) is not None


def test_pages_stay_where_they_are_while_tasks_come_in(ledger: Ledger) -> None:
    old = accepted(ledger, *(submission("paged") for _ in range(7)))
    wanted = TaskFilter(template="paged")
    first, cursor = ledger.list(wanted, limit=3)
    accepted(ledger, submission("paged"))
    second, cursor = ledger.list(wanted, limit=3, cursor=cursor)
    third, end = ledger.list(wanted, limit=3, cursor=cursor)
    assert [each.task_id for page in (first, second, third) for each in page] == old[::-1]
    assert end is None
    with pytest.raises(InputError, match="'x' is no cursor"):
        ledger.list(wanted, limit=3, cursor="x")


def test_every_filter_counts(ledger: Ledger) -> None:
    (mine,) = accepted(ledger, submission("mine", owner="someone", labels={"a": "1", "b": "2"}))
    accepted(ledger, submission("other", labels={"a": "1"}))
    hour = timedelta(hours=1)
    now = datetime.now(UTC)
    hits = (
        TaskFilter(owner="someone"),
        TaskFilter(template="mine"),
        TaskFilter(workflow_id=mine),
        TaskFilter(labels={"a": "1", "b": "2"}),
        TaskFilter(template="mine", states=(TaskState.PENDING, TaskState.DEAD)),
        TaskFilter(template="mine", submitted_after=now - hour, submitted_before=now + hour),
    )
    for each in hits:
        assert [task.task_id for task in ledger.list(each, limit=9)[0]] == [mine], each
    misses = (
        TaskFilter(template="mine", states=(TaskState.DONE,)),
        TaskFilter(template="mine", task_type="sft"),
        TaskFilter(template="mine", worker_id="w"),
        TaskFilter(template="mine", submitted_before=now - hour),
        TaskFilter(labels={"b": "1"}),
    )
    for each in misses:
        assert ledger.list(each, limit=9) == ([], None), each


def test_a_task_has_one_run_at_a_time_and_what_is_cancelled_has_none(ledger: Ledger) -> None:
    kept, gone = accepted(ledger, submission("kept"), submission("gone"))
    assert ledger.cancel([gone]) == {gone: TaskState.CANCELLED}
    ids = (kept, gone)
    plan = PlannedRun(run_id=str(uuid.uuid4()), workflow_id=None, task_ids=ids)
    (real,) = ledger.plan_runs([plan])
    assert real.task_ids == (kept,)
    again = PlannedRun(run_id=str(uuid.uuid4()), workflow_id=None, task_ids=ids)
    assert ledger.plan_runs([again]) == []
    assert plan.run_id in {each.run_id for each in ledger.open_runs()}
    ledger.end_runs([plan.run_id])
    assert plan.run_id not in {each.run_id for each in ledger.open_runs()}


def test_tasks_that_would_share_a_run_are_cancelled_and_retried_together(ledger: Ledger) -> None:
    """A stage that depends on a cancelled one would wait for ever, or the run compute both."""
    stages = (("first", ()), ("second", ("first",)), ("third", ("second",)), ("aside", ()))
    for cancelled in ("first", "second", "aside"):
        name = str(uuid.uuid4())
        tasks = tuple(
            NewTask(task_id=f"{name}-{node}", node=node, task_type="echo", depends_on=before)
            for node, before in stages
        )
        (other,) = accepted(ledger, submission("beside"))
        accepted(ledger, submission("staged", workflow_id=name, tasks=tasks))
        ledger.cancel([f"{name}-{cancelled}"])
        assert {each.state for each in ledger.workflow(name)} == {TaskState.CANCELLED}
        assert {each.task_id for each in ledger.untold(100)} >= {each.task_id for each in tasks}
        mine = {each.task_id for each in tasks}
        assert not mine & {each.task_id for each in ledger.waiting(100)}
        kept = ledger.task(other)
        assert kept is not None
        assert kept.state is TaskState.PENDING
        assert ledger.retry([f"{name}-{cancelled}"]) == mine
        planned(ledger, *sorted(mine))


def test_an_old_run_has_no_say_and_an_ended_task_stays_ended(ledger: Ledger) -> None:
    (task_id,) = accepted(ledger, submission("told"))
    old = planned(ledger, task_id)
    failed = TaskChange(task_id=task_id, run_id=old, state=TaskState.DEAD, error="no\0way")
    ledger.change([failed])
    ledger.change([TaskChange(task_id=task_id, run_id=old, state=TaskState.RUNNING)])
    entry = ledger.task(task_id)
    assert entry is not None
    assert (entry.state, entry.error) == (TaskState.DEAD, "no�way")
    assert ledger.retry([task_id]) == {task_id}
    new = planned(ledger, task_id)
    ledger.change([failed, TaskChange(task_id=task_id, run_id=new, state=TaskState.DONE, rows=1)])
    entry = ledger.task(task_id)
    assert entry is not None
    assert (entry.state, entry.runs, entry.error) == (TaskState.DONE, 2, "")
    assert ledger.retry([task_id]) == set()


def test_tasks_of_a_run_that_is_given_up_wait_again(ledger: Ledger) -> None:
    wanted, unwanted = accepted(ledger, submission("wanted"), submission("unwanted"))
    run_id = planned(ledger, wanted, unwanted)
    assert ledger.cancel([unwanted]) == {unwanted: TaskState.DISPATCHED}
    assert unwanted in {each.task_id for each in ledger.cancelling()}
    ledger.give_back(run_id)
    states = {key: each.state for key, each in ledger.tasks([wanted, unwanted]).items()}
    assert states == {wanted: TaskState.PENDING, unwanted: TaskState.CANCELLED}


def test_what_is_forgotten_is_gone_and_nothing_else(ledger: Ledger) -> None:
    done, waits = accepted(ledger, submission("same"), submission("same"))
    ledger.cancel([done])
    assert ledger.forget([done, waits]) == {done}
    assert ledger.task(done) is None
    assert ledger.document(waits) is not None


def test_what_is_retried_meanwhile_is_not_removed(ledger: Ledger) -> None:
    """Whoever cleans up has seen it ended: that may be a while ago."""
    ended, retried = accepted(ledger, submission("ended"), submission("retried"))
    ledger.cancel([ended, retried])
    ledger.retry([retried])
    removed: list[str] = []
    assert ledger.forget([ended, retried], removed.append) == {ended}
    assert removed == [ended]
    assert ledger.task(retried) is not None


def test_news_is_heard_and_one_leads(ledger: Ledger) -> None:
    with ledger.listen() as first, ledger.listen() as second:
        assert not first.wait(0)
        accepted(ledger, submission("news"))
        assert first.wait(10)
        assert second.wait(10)
        lock = uuid.uuid4().int % 2**31
        assert first.lead(lock)
        assert not second.lead(lock)
    with ledger.listen() as third:
        assert third.lead(lock)


def test_tasks_are_accepted_and_forgotten_while_a_dispatcher_leads(ledger: Ledger) -> None:
    with ledger.listen() as dispatcher:
        assert dispatcher.lead(AdvisoryLock.LEAD)
        (done,) = accepted(ledger, submission("led"))
        ledger.cancel([done])
        assert ledger.forget([done]) == {done}
