"""Runs that wait are taken in order of slack, by Dagster's own order of the queue."""

from __future__ import annotations

from collections.abc import Iterator
from time import time

import dagster as dg
import pytest
from dagster import DagsterRunStatus
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from mloc_dagster.events import BEGINNING, Channel, TaskEvent, open_redis, read_events
from mloc_dagster.local_run import run_template
from mloc_dagster.ops import SLO_MISSED_TAG, SLO_TAG, SUBMITTED_TAG
from mloc_dagster.sensors import (
    PRIORITY_TAG,
    Deadlines,
    JobEstimates,
    publish_missed,
    reorder_queue,
)
from mloc_dagster.services import queued_runs
from mloc_dagster.settings import settings
from tests.e2e.queued_runs import echo_template, queued

pytestmark = pytest.mark.e2e

QUEUED = dg.RunsFilter(statuses=[DagsterRunStatus.QUEUED])


@pytest.fixture(autouse=True)
def nothing_left_behind(instance: dg.DagsterInstance) -> Iterator[None]:
    """No queue, and no missed SLO untold: other files' runs lie in the same database."""
    for run in instance.get_runs(QUEUED):
        instance.delete_run(run.run_id)
    publish_missed(instance)
    yield
    for run in instance.get_runs(QUEUED):
        instance.delete_run(run.run_id)


@pytest.fixture
def with_redis(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    return redis_url


def taken_order(instance: dg.DagsterInstance) -> list[str]:
    """The queue as the daemon takes it."""
    daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)
    runs = instance.get_runs(QUEUED, ascending=True)
    return [run.run_id for run in daemon._priority_sort(runs)]


def slo(seconds: float) -> str:
    return f"slo: {{seconds: {seconds}}}"


def test_runs_leave_the_queue_in_order_of_slack(instance: dg.DagsterInstance) -> None:
    plain = queued(instance, echo_template("plain"))
    loose = queued(instance, echo_template("loose", more=slo(900)))
    tight = queued(instance, echo_template("tight", more=slo(30)))
    mine = queued(instance, echo_template("mine"), {PRIORITY_TAG: "1000"})
    assert tight.tags[SLO_TAG] == "30"
    estimates = JobEstimates()
    assert set(reorder_queue(instance, estimates)) == {tight.run_id, loose.run_id}
    wanted = [each.run_id for each in (mine, tight, loose, plain)]
    assert taken_order(instance) == wanted
    assert reorder_queue(instance, estimates) == {}
    urgent = queued(instance, echo_template("urgent", more=slo(5)))
    assert set(reorder_queue(instance, estimates)) == {urgent.run_id}
    assert taken_order(instance) == [wanted[0], urgent.run_id, *wanted[1:]]


def test_a_queue_without_slo_stays_as_it_is(instance: dg.DagsterInstance) -> None:
    runs = [queued(instance, echo_template("plain")).run_id for _ in range(3)]
    assert reorder_queue(instance, JobEstimates()) == {}
    assert taken_order(instance) == runs
    assert all(PRIORITY_TAG not in run.tags for run in instance.get_runs(QUEUED))


def test_a_job_that_takes_long_has_less_slack(instance: dg.DagsterInstance) -> None:
    slow = echo_template("slow-one", "delay_s: 0.5", slo(60))
    assert run_template(slow, instance).succeeded
    quick = queued(instance, echo_template("quick-one", more=slo(61)))
    waiting = queued(instance, slow)
    reorder_queue(instance, JobEstimates())
    assert taken_order(instance) == [waiting.run_id, quick.run_id]


def test_a_missed_slo_is_told_once(instance: dg.DagsterInstance, with_redis: str) -> None:
    run = queued(instance, echo_template("late-one", more=slo(600)))
    record = instance.get_run_record_by_id(run.run_id)
    assert record is not None
    submitted = record.create_timestamp.timestamp()
    assert [each.run_id for each in publish_missed(instance, submitted + 595)] == []
    (event,) = publish_missed(instance, submitted + 605)
    assert publish_missed(instance, submitted + 606) == []
    assert (event.task_id, event.run_id) == (run.run_id, run.run_id)
    tagged = instance.get_run_by_id(run.run_id)
    assert tagged is not None
    assert 4 < float(tagged.tags[SLO_MISSED_TAG]) < 6
    with open_redis(with_redis) as client:
        (logged,) = read_events(client, {Channel.TASKS: BEGINNING})
    assert isinstance(logged.event, TaskEvent)
    assert logged.event.payload.slo is not None
    assert logged.event.payload.slo.seconds == 600
    assert 4 < logged.event.payload.slo.late_s < 6


def test_an_slo_counts_from_the_submission_of_what_waited_for_its_run(
    instance: dg.DagsterInstance,
) -> None:
    record = instance.get_run_record_by_id(queued(instance, echo_template("now")).run_id)
    assert record is not None
    submitted = record.create_timestamp.timestamp() - 500
    tags = {SUBMITTED_TAG: f"{submitted:.3f}"}
    run = queued(instance, echo_template("long-ago", more=slo(600)), tags)
    later = queued(instance, echo_template("just-now", more=slo(300)))
    reorder_queue(instance, JobEstimates())
    assert taken_order(instance)[:2] == [run.run_id, later.run_id]
    assert publish_missed(instance, submitted + 595) == []
    assert [each.run_id for each in publish_missed(instance, submitted + 605)] == [run.run_id]


def test_a_run_that_ended_late_is_told_of(instance: dg.DagsterInstance) -> None:
    tags = {SLO_TAG: "0.001"}
    outcome = run_template(echo_template("ended-late"), instance, tags=tags)
    (event,) = [each for each in publish_missed(instance) if each.run_id == outcome.run_id]
    assert event.payload.reason == "ended late"
    assert publish_missed(instance) == []


def test_without_redis_nothing_is_tagged_that_was_not_published(
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = queued(instance, echo_template("untold"), {SLO_TAG: "0.001"})
    monkeypatch.setenv("MLOC_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    with caplog.at_level("WARNING"):
        Deadlines().tell_missed(instance)
    assert "follow later" in caplog.text
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    assert SLO_MISSED_TAG not in found.tags


def test_times_are_right_whatever_the_zone_of_the_database(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    began = time()
    with dg.DagsterInstance.from_ref(instance.get_ref()) as elsewhere:
        run = queued(elsewhere, echo_template("elsewhere"), {SLO_TAG: "100"})
        (row,) = queued_runs(elsewhere.run_storage, (SLO_TAG,))  # type: ignore[arg-type]
        outcome = run_template(echo_template("ended-there"), elsewhere, tags={SLO_TAG: "0.001"})
        told = [each.run_id for each in publish_missed(elsewhere)]
    assert row.run_id == run.run_id
    assert began - 1 <= row.created_s <= time()
    assert told == [outcome.run_id]
