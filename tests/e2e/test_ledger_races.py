"""The ledger when several write at once, and when its server goes in the middle."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection

from mloc_dagster.errors import TransientError
from mloc_dagster.ledger import (
    Accepted,
    KeyReused,
    Ledger,
    PlannedRun,
    Request,
    Submission,
    TaskChange,
    TaskFilter,
    acceptance,
    dispatching,
    transaction,
)
from mloc_dagster.wire import TaskState
from tests.e2e.ledger_database import (
    KilledBefore,
    accepted,
    own_database,
    planned,
    submission,
)
from tests.e2e.stack import until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def url(session_instance: dg.DagsterInstance, session_home: Path) -> str:
    return own_database(session_home, "ledger_races")


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = Ledger.open(url)
    yield opened
    opened.close()


def meanwhile[T](
    ledger: Ledger, first: Callable[[Connection], object], second: Callable[[], T]
) -> T:
    """Returns what a call answers that begins before the first one's transaction has committed."""
    with ThreadPoolExecutor(1) as pool:
        with transaction(ledger._engine) as connection:
            first(connection)
            later: Future[T] = pool.submit(second)
            until(lambda: later.done() or somebody_waits(ledger), "the second call waits", 30)
        return later.result(30)


def somebody_waits(ledger: Ledger) -> bool:
    with transaction(ledger._engine) as connection:
        waits = "datname = current_database() AND wait_event_type = 'Lock'"
        found = connection.scalar(text(f"SELECT count(*) FROM pg_stat_activity WHERE {waits}"))
        return bool(found)


def at_once(*calls: Callable[[], object], times: int) -> None:
    """Makes calls so often, all at the same time; raises what one of them raises."""
    barrier = threading.Barrier(len(calls))

    def repeat(call: Callable[[], object]) -> None:
        barrier.wait(30)
        for _ in range(times):
            call()

    with ThreadPoolExecutor(len(calls)) as pool:
        for each in [pool.submit(repeat, call) for call in calls]:
            each.result(60)


@pytest.mark.parametrize("beginning", ["INSERT INTO mloc.submissions", "INSERT INTO mloc.tasks"])
def test_an_acceptance_that_is_cut_off_leaves_nothing_and_can_be_repeated(
    ledger: Ledger, url: str, beginning: str
) -> None:
    key, name = str(uuid.uuid4()), f"cut-{uuid.uuid4()}"
    given = [
        submission(name, request=Request(key=key, place=place, content_hash=name))
        for place in range(3)
    ]
    away = pytest.raises(TransientError, match="the database is away")
    with KilledBefore(ledger, url, beginning), away:
        ledger.accept(given)
    assert ledger.list(TaskFilter(template=name), limit=9) == ([], None)
    assert ledger.document(given[0].workflow_id) is None
    ids = accepted(ledger, *given)
    assert {each.task_id for each in ledger.list(TaskFilter(template=name), limit=9)[0]} == set(ids)


@pytest.mark.parametrize("key", [None, "heard"])
def test_what_was_accepted_without_anybody_hearing_it_is_not_accepted_twice(
    ledger: Ledger, key: str | None
) -> None:
    given = submission("unheard", key)
    assert ledger.accept([given]) == ledger.accept([given])
    assert len(ledger.workflow(given.workflow_id)) == 1


def test_a_key_with_more_documents_or_fewer_accepts_none_of_them(ledger: Ledger) -> None:
    key, name = str(uuid.uuid4()), f"whole-{uuid.uuid4()}"

    def request(*contents: str) -> list[Submission]:
        content = "".join(contents)
        return [
            submission(
                name,
                content_hash=each * 64,
                request=Request(key=key, place=place, content_hash=content),
            )
            for place, each in enumerate(contents)
        ]

    first = ledger.accept(request("a", "b"))
    assert ledger.accept(request("a", "b")) == [replace(each, new=False) for each in first]
    for other in ("abc", "a", "ac", "cb"):
        assert all(isinstance(each, KeyReused) for each in ledger.accept(request(*other)))
    assert len(ledger.list(TaskFilter(template=name), limit=9)[0]) == 2


def test_acceptance_is_durable_on_a_server_that_is_set_otherwise(url: str) -> None:
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("ALTER DATABASE ledger_races SET synchronous_commit = off"))
        assert connection.scalar(text("SHOW fsync")) == "on"
    admin.dispose()
    opened = Ledger.open(url)
    with transaction(opened._engine) as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
    opened.close()


def test_two_that_accept_the_same_in_another_order_both_go_on(ledger: Ledger) -> None:
    run = uuid.uuid4()

    def accept(names: Sequence[str]) -> None:
        answers = ledger.accept([submission(f"{run}{each}", f"{run}{each}") for each in names])
        assert all(isinstance(each, Accepted) for each in answers)

    names = [f"-{number}" for number in range(20)]
    at_once(lambda: accept(names), lambda: accept(names[::-1]), times=10)
    assert len(ledger.list(TaskFilter(template=f"{run}-7"), limit=9)[0]) == 1


def test_a_key_whose_first_acceptance_fails_is_free_for_the_second(ledger: Ledger) -> None:
    key = str(uuid.uuid4())
    first, second = submission("first", key), submission("first", key)
    with ledger._engine.connect() as connection:
        acceptance.accept(connection, [first])
        with ThreadPoolExecutor(1) as pool:
            later = pool.submit(ledger.accept, [second])
            until(lambda: somebody_waits(ledger), "the second one waits", 30)
            connection.rollback()
            (answer,) = later.result(30)
    assert isinstance(answer, Accepted)
    assert (answer.workflow_id, answer.new) == (second.workflow_id, True)
    assert ledger.task(first.workflow_id) is None


def test_a_document_stays_when_it_is_submitted_again_while_it_is_forgotten(ledger: Ledger) -> None:
    name = f"again-{uuid.uuid4()}"
    (old,) = accepted(ledger, submission(name))
    ledger.cancel([old])
    new = submission(name)
    forgotten = meanwhile(
        ledger,
        lambda connection: acceptance.accept(connection, [new]),
        lambda: ledger.forget([old]),
    )
    assert forgotten == {old}
    assert ledger.document(new.workflow_id) == new.document


def test_a_wish_to_cancel_is_kept_when_a_run_is_given_up_meanwhile(ledger: Ledger) -> None:
    (task_id,) = accepted(ledger, submission("given up"))
    run_id = planned(ledger, task_id)
    states = meanwhile(
        ledger,
        lambda connection: dispatching.give_back(connection, run_id),
        lambda: ledger.cancel([task_id]),
    )
    assert states == {task_id: TaskState.CANCELLED}


def test_a_wish_to_cancel_reaches_a_run_that_is_planned_meanwhile(ledger: Ledger) -> None:
    (task_id,) = accepted(ledger, submission("planned"))
    plan = PlannedRun(run_id=str(uuid.uuid4()), workflow_id=None, task_ids=(task_id,))
    states = meanwhile(
        ledger,
        lambda connection: dispatching.plan_runs(connection, [plan]),
        lambda: ledger.cancel([task_id]),
    )
    assert states == {task_id: TaskState.DISPATCHED}
    assert task_id in {each.task_id for each in ledger.cancelling()}


def test_a_task_is_planned_once_by_two_that_lead(ledger: Ledger) -> None:
    (task_id,) = accepted(ledger, submission("led"))
    plans = [
        PlannedRun(run_id=str(uuid.uuid4()), workflow_id=None, task_ids=(task_id,))
        for _ in range(2)
    ]
    second = meanwhile(
        ledger,
        lambda connection: dispatching.plan_runs(connection, plans[:1]),
        lambda: ledger.plan_runs(plans[1:]),
    )
    assert second == []
    assert plans[1].run_id not in {each.run_id for each in ledger.open_runs()}


def test_writers_of_the_same_tasks_never_wait_in_a_circle(url: str) -> None:
    Ledger.open(url).close()
    admin = create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        # As it is with many tasks: each is looked up, in the order in which they are named.
        for way in ("hashjoin", "mergejoin", "seqscan"):
            connection.execute(text(f"ALTER DATABASE ledger_races SET enable_{way} = off"))
    admin.dispose()
    ledger = Ledger.open(url)
    ids = accepted(ledger, *(submission("circle") for _ in range(30)))
    run_id = planned(ledger, *ids)

    def change(order: Sequence[str]) -> None:
        ledger.change(
            [TaskChange(task_id=each, run_id=run_id, state=TaskState.RUNNING) for each in order]
        )

    at_once(
        lambda: change(ids),
        lambda: change(ids[::-1]),
        lambda: ledger.cancel(ids[::2]),
        lambda: ledger.retry(ids[::-3]),
        times=15,
    )
    assert {each.state for each in ledger.tasks(ids).values()} == {TaskState.RUNNING}
    ledger.close()


def test_the_states_are_counted_whatever_happens(ledger: Ledger) -> None:
    first, *ids = accepted(ledger, *(submission("counted") for _ in range(9)))
    run_id = planned(ledger, *ids)
    ledger.cancel([first])
    ended = [(each, TaskState.DONE) for each in ids[:3]] + [(ids[3], TaskState.FAILED)]
    ledger.change([TaskChange(task_id=key, run_id=run_id, state=state) for key, state in ended])
    ledger.retry(ids[3:4])
    ledger.forget([first, ids[0]])
    counted = text("SELECT state, count(*) FROM mloc.tasks GROUP BY state")
    with transaction(ledger._engine) as connection:
        expected = {TaskState(state): number for state, number in connection.execute(counted)}
    assert {state: number for state, number in ledger.counts().items() if number} == expected
    before = ledger.counts()
    with transaction(ledger._engine) as connection:
        connection.execute(text("SELECT mloc.fold_state_counts()"))
        rows = connection.scalar(text("SELECT count(*) FROM mloc.state_counts"))
    assert rows == len(expected)
    assert ledger.counts() == before
