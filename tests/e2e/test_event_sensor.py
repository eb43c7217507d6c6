"""Dagster's event log reaches Redis: every fact once, the same that workers publish."""

from __future__ import annotations

from collections import Counter

import dagster as dg
import pytest

from mloc_dagster.events import (
    BEGINNING,
    Channel,
    TaskEvent,
    listening,
    open_redis,
    read_events,
    send,
)
from mloc_dagster.local_run import run_template
from mloc_dagster.ops import DEAD_LETTER_TAG
from mloc_dagster.sensors import LogCursor, facts_since, publish_events_sensor, publish_since
from mloc_dagster.services import newest_id
from mloc_dagster.settings import settings
from tests.e2e.queued_runs import echo_template, queued

pytestmark = pytest.mark.e2e


@pytest.fixture
def cursor(instance: dg.DagsterInstance) -> LogCursor:
    """Where the log ends before the test: earlier runs are not its business."""
    return LogCursor(after=newest_id(instance.event_log_storage))  # type: ignore[arg-type]


def kinds(events: list[TaskEvent]) -> list[tuple[str, int | None, int]]:
    return [(each.type, each.shard and each.shard.index, each.attempt) for each in events]


def test_the_log_says_what_the_worker_said(instance: dg.DagsterInstance, cursor: LogCursor) -> None:
    heard: list[TaskEvent] = []
    with listening(heard.append):
        outcome = run_template(echo_template("said", "fail_rate: 0.4, seed: 3"), instance)
    events, letters, reached = facts_since(instance, cursor)
    said = [each for each in heard if each.type != "TASK_PROGRESS"]
    known = {each.event_id for each in said}
    assert outcome.succeeded
    assert Counter(kinds(events)) == Counter(kinds(said))
    assert ("SHARD_FAILED", 0, 1) in kinds(said)
    assert {each.event_id for each in events} == known
    assert not letters
    assert facts_since(instance, reached)[0] == []


def test_a_run_that_succeeds(
    instance: dg.DagsterInstance, cursor: LogCursor, redis_url: str
) -> None:
    outcome = run_template(echo_template("well"), instance)
    with open_redis(redis_url) as client:
        events, _ = publish_since(instance, client, cursor)
        publish_since(instance, client, cursor)  # as after a crash before the cursor was kept
        found = [each.event for each in read_events(client, {Channel.TASKS: BEGINNING})]
    assert found == events
    assert kinds(events) == [
        ("TASK_STARTED", None, 1),
        ("SHARD_STARTED", 0, 1),
        ("SHARD_SUCCEEDED", 0, 1),
        ("SHARD_STARTED", 1, 1),
        ("SHARD_SUCCEEDED", 1, 1),
        ("TASK_SUCCEEDED", None, 1),
    ]
    assert {each.task_id for each in events} == {outcome.tasks[0].task_id}
    assert {each.node for each in events} == {"well"}


def test_a_run_that_fails_for_good_is_a_dead_letter(
    instance: dg.DagsterInstance, cursor: LogCursor, redis_url: str
) -> None:
    outcome = run_template(echo_template("ill", "fail_rate: 1.0"), instance)
    with open_redis(redis_url) as client:
        publish_since(instance, client, cursor)
        events = [each.event for each in read_events(client, {Channel.TASKS: BEGINNING})]
    of_first = [each for each in events if each.shard and each.shard.index == 0]
    assert kinds(of_first) == [
        ("SHARD_STARTED", 0, 1),
        ("SHARD_FAILED", 0, 1),
        ("SHARD_STARTED", 0, 2),
        ("SHARD_FAILED", 0, 2),
    ]
    assert all(each.error for each in of_first if each.type == "SHARD_FAILED")
    counts = Counter(each.type for each in events)
    assert (counts["TASK_FAILED"], counts["TASK_DEAD_LETTERED"]) == (1, 1)
    assert events[-1].type == "TASK_DEAD_LETTERED"
    (letter,) = instance.get_runs(dg.RunsFilter(tags={DEAD_LETTER_TAG: outcome.workflow_id}))
    assert letter.run_id == outcome.run_id


def test_a_cancelled_run_is_no_dead_letter(instance: dg.DagsterInstance, cursor: LogCursor) -> None:
    run = queued(instance, echo_template("unwanted"))
    instance.report_run_canceled(run)
    events, letters, _ = facts_since(instance, cursor)
    assert kinds(events) == [("TASK_SUBMITTED", None, 1), ("TASK_CANCELLED", None, 1)]
    assert letters == {}


def test_each_task_of_a_run_is_told_of(instance: dg.DagsterInstance, cursor: LogCursor) -> None:
    stages = "stages: [{name: draft-1}, {name: refine}]"
    compiled = echo_template("two-steps", more=stages)
    run = queued(instance, compiled)
    outcome = run_template(compiled, instance)
    events, _, _ = facts_since(instance, cursor)
    submitted = [each for each in events if each.type == "TASK_SUBMITTED"]
    assert [each.task_id for each in submitted] == [f"{run.run_id}-draft-1", f"{run.run_id}-refine"]
    done = [each for each in events if each.type == "TASK_SUCCEEDED"]
    assert [each.task_id for each in done] == [each.task_id for each in outcome.tasks]


def test_what_a_failure_kept_from_running_is_told_of_too(
    instance: dg.DagsterInstance, cursor: LogCursor
) -> None:
    stages = "stages: [{name: one}, {name: two}]"
    compiled = echo_template("chain", "fail_rate: 1.0", stages)
    outcome = run_template(compiled, instance)
    events, letters, _ = facts_since(instance, cursor)
    both = [f"{outcome.workflow_id}-one", f"{outcome.workflow_id}-two"]
    assert letters == {outcome.run_id: both}
    assert [each.task_id for each in events if each.type == "TASK_DEAD_LETTERED"] == both


def tick(instance: dg.DagsterInstance, cursor: str | None) -> tuple[str, str | None]:
    context = dg.build_sensor_context(instance=instance, cursor=cursor)
    reason = publish_events_sensor()(context)
    assert isinstance(reason, dg.SkipReason)
    return str(reason.skip_message), context.cursor


def test_ticks_go_on_where_the_last_one_stopped(
    instance: dg.DagsterInstance,
    cursor: LogCursor,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = cursor.model_dump_json()
    assert tick(instance, place)[0] == "MLOC_REDIS_URL is not set"
    monkeypatch.setenv("MLOC_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    queued(instance, echo_template("first"))
    said, after = tick(instance, place)
    assert "events follow later" in said
    assert after == place

    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    said, after = tick(instance, after)
    assert said == "1 TASK_SUBMITTED"
    assert tick(instance, after) == ("nothing new", after)
    queued(instance, echo_template("second"))
    assert tick(instance, after)[0] == "1 TASK_SUBMITTED"
    with open_redis(redis_url) as client:
        assert client.xlen(Channel.TASKS.log) == 2


def test_the_sensor_runs_by_itself_where_there_is_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    assert publish_events_sensor().default_status is dg.DefaultSensorStatus.STOPPED
    monkeypatch.setenv("MLOC_REDIS_URL", "redis://127.0.0.1:1/0")
    settings.cache_clear()
    assert publish_events_sensor().default_status is dg.DefaultSensorStatus.RUNNING


def test_a_worker_that_published_first_is_not_repeated(
    instance: dg.DagsterInstance, cursor: LogCursor, redis_url: str
) -> None:
    heard: list[TaskEvent] = []
    with listening(heard.append):
        run_template(echo_template("both"), instance)
    with open_redis(redis_url) as client:
        facts = [each for each in heard if each.type != "TASK_PROGRESS"]
        send(client, facts)
        publish_since(instance, client, cursor)
        found = [each.event for each in read_events(client, {Channel.TASKS: BEGINNING})]
    assert found == facts
