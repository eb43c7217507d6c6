"""The event log over a database that goes away: each event once, none lost without a word."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Generator
from contextlib import closing, contextmanager

import dagster as dg
import psycopg2
import pytest
import sqlalchemy
from dagster import EventLogEntry
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from mloc_dagster.services import EventLog

pytestmark = pytest.mark.e2e


def line(run_id: str, text: str) -> EventLogEntry:
    return EventLogEntry(
        error_info=None, level=20, user_message=text, run_id=run_id, timestamp=time.time()
    )


def texts(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [each.user_message for each in instance.all_logs(run_id)]


def url_of(instance: dg.DagsterInstance) -> str:
    log = instance.event_log_storage
    assert isinstance(log, EventLog)
    return log.postgres_url


class DiesAfterCommit(EventLog):
    """Its database commits the first transaction, and dies before it says so."""

    died = False

    @contextmanager
    def _transaction(self) -> Generator[Connection]:
        with super()._transaction() as connection:
            yield connection
        if not self.died:
            self.died = True
            raise OperationalError("COMMIT", None, Exception("the server closed the connection"))


def test_a_commit_whose_answer_was_lost_is_not_repeated(instance: dg.DagsterInstance) -> None:
    run_id = str(uuid.uuid4())
    log = DiesAfterCommit(url_of(instance))
    log.store_events([line(run_id, "one"), line(run_id, "two")])
    log.store_event(line(run_id, "three"))
    log.dispose()
    assert log.died
    assert texts(instance, run_id) == ["one", "two", "three"]


def test_a_connection_that_died_a_moment_ago_costs_no_event(
    instance: dg.DagsterInstance,
) -> None:
    run_id = str(uuid.uuid4())
    url = url_of(instance)
    # A name by which the server knows this log's connections.
    log = EventLog(f"{url}{'&' if '?' in url else '?'}application_name={run_id}")
    log.optimize_for_webserver(statement_timeout=60_000, pool_recycle=3_600, max_overflow=2)
    try:
        log.store_event(line(run_id, "one"))
        with closing(psycopg2.connect(url.replace("+psycopg2", ""))) as other:
            other.autocommit = True
            with other.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = %s",
                    (run_id,),
                )
        log.store_event(line(run_id, "two"))
    finally:
        log.dispose()
    assert texts(instance, run_id) == ["one", "two"]


class AwayForGood(EventLog):
    """Fails every write, once two threads wait for it."""

    def _write_patiently(self, entries: object) -> None:
        while not self._waiting and not self.failed:
            time.sleep(0.01)
        self.failed = True
        raise DagsterPostgresException("too many retries for DB connection")

    failed = False


def test_every_thread_learns_that_its_events_were_not_written(
    instance: dg.DagsterInstance,
) -> None:
    run_id = str(uuid.uuid4())
    log = AwayForGood(url_of(instance))
    heard: list[str] = []

    def store(text: str) -> None:
        try:
            log.store_event(line(run_id, text))
        except DagsterPostgresException:
            heard.append(text)

    threads = [threading.Thread(target=store, args=(text,)) for text in ("a", "b", "c")]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    log.dispose()
    assert sorted(heard) == ["a", "b", "c"]
    assert texts(instance, run_id) == []


def test_two_runs_never_get_the_same_slot_of_a_pool(instance: dg.DagsterInstance) -> None:
    """The second asks at the moment when the first has found a slot and not taken it yet."""
    pool, runs = f"pool-{uuid.uuid4()}", [str(uuid.uuid4()) for _ in range(2)]
    instance.event_log_storage.set_concurrency_slots(pool, 1)
    first, second = EventLog(url_of(instance)), EventLog(url_of(instance))
    for log, run_id in zip((first, second), runs, strict=True):
        log.add_pending_step(pool, run_id, "step", should_assign=True)
    claimed: list[bool] = []

    def ask_too(statement: str, **_: object) -> None:
        if "SKIP LOCKED" in statement and not claimed:
            claimed.append(second.claim_concurrency_slot(pool, runs[1], "step").is_claimed)

    sqlalchemy.event.listen(first._engine, "after_cursor_execute", ask_too, named=True)
    claimed.append(first.claim_concurrency_slot(pool, runs[0], "step").is_claimed)
    assert claimed == [False, True]
    assert instance.event_log_storage.get_concurrency_info(pool).active_run_ids == {runs[0]}
    first.dispose()
    second.dispose()
