"""The publisher when Redis is slow, away, or back: nothing waits, no fact is lost or doubled."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis

from mloc_dagster.events.bus import publish
from mloc_dagster.events.log import BEGINNING, Channel
from mloc_dagster.events.model import TaskEvent, TaskEventType
from mloc_dagster.events.redis import Backlog, RedisPublisher, publishing_to_redis
from mloc_dagster.events.stream import open_redis, read_events, send
from mloc_dagster.settings import settings
from tests.redis_server import RedisServer, running_redis


def event(number: int, kind: TaskEventType = TaskEventType.TASK_STARTED) -> TaskEvent:
    made = TaskEvent(type=kind, task_id=f"t{number}", run_id="r")
    return made.model_copy(update={"ts": made.ts + timedelta(seconds=number)})


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that the test may take away."""
    with running_redis(tmp_path) as server:
        yield server


def tasks_in(url: str) -> list[str]:
    with open_redis(url) as client:
        found = read_events(client, {Channel.TASKS: BEGINNING}, limit=100_000)
    return [each.event.task_id for each in found if isinstance(each.event, TaskEvent)]


def test_what_is_published_while_redis_is_away_arrives_in_order(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with open_redis(own_redis.url) as client:
        client.config_set("appendfsync", "always")  # what Redis itself may lose is not the subject
    publisher = RedisPublisher(own_redis.url)
    publisher.publish(event(0))
    assert publisher.flush(20)
    own_redis.stop(kill=True)
    for number in range(1, 301):
        publisher.publish(event(number))
    assert not publisher.flush(0.3)
    own_redis.start()
    assert publisher.flush(20)
    publisher.close()
    assert tasks_in(own_redis.url) == [f"t{number}" for number in range(301)]
    assert caplog.text.count("cannot be reached") == 1
    assert "no event was dropped" in caplog.text


def test_a_batch_whose_answer_was_lost_is_not_doubled(redis_url: str) -> None:
    with open_redis(redis_url) as client:
        assert send(client, [event(1), event(2)]) == 2
        assert send(client, [event(1), event(2), event(3)]) == 1
    assert tasks_in(redis_url) == ["t1", "t2", "t3"]


def test_progress_is_dropped_before_facts() -> None:
    backlog = Backlog(capacity=3)
    progress = TaskEventType.TASK_PROGRESS
    given = [event(0), event(1, progress), event(2, progress), event(3), event(4), event(5)]
    for each in given:
        backlog.put(each)
    backlog.put(event(6, progress))
    assert [each.task_id for each in backlog.peek(9) if isinstance(each, TaskEvent)] == [
        "t3",
        "t4",
        "t5",
    ]
    assert (backlog.dropped_progress, backlog.dropped_facts) == (3, 1)
    assert backlog.losses == "3 progress events and 1 others were dropped since the start"


def test_what_was_dropped_while_it_was_sent_is_not_taken_twice() -> None:
    backlog = Backlog(capacity=2)
    backlog.put(event(0, TaskEventType.TASK_PROGRESS))
    backlog.put(event(1))
    sent = backlog.peek(2)
    backlog.put(event(2))
    backlog.remove(sent)
    assert [each.task_id for each in backlog.peek(9) if isinstance(each, TaskEvent)] == ["t2"]


def test_closing_without_redis_says_what_is_lost(
    own_redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    publisher = RedisPublisher(own_redis.url)
    own_redis.stop()
    publisher.publish(event(1))
    publisher.close(timeout_s=0.1)
    assert "1 events did not reach Redis" in caplog.text


def test_what_a_process_does_goes_out_with_its_name(redis_url: str) -> None:
    with publishing_to_redis(redis_url, worker_id="w7") as publisher:
        publish(event(1))
        assert publisher is not None
        assert publisher.flush(20)
    publish(event(2))
    with open_redis(redis_url) as client:
        (found,) = read_events(client, {Channel.TASKS: BEGINNING})
    assert found.event.worker_id == "w7"


def test_without_redis_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLOC_REDIS_URL", raising=False)
    settings.cache_clear()
    with publishing_to_redis() as publisher:
        publish(event(1))
    assert publisher is None


def test_channel_and_log_carry_the_same_json(redis_url: str) -> None:
    with open_redis(redis_url) as client, client.pubsub() as hearer:
        hearer.subscribe(Channel.TASKS)
        assert hearer.get_message(timeout=5) is not None
        send(client, [event(1)])
        message = hearer.get_message(timeout=5)
        assert message is not None
        (entry,) = client.xrange(Channel.TASKS.log)
    assert entry[1][b"event"] == message["data"]
    said = json.loads(message["data"])
    assert set(said) == {
        *("event_id", "type", "ts", "task_id", "run_id", "node"),
        *("worker_id", "status", "attempt", "payload"),
    }
    assert said["ts"].endswith("Z")


def test_the_log_is_capped(redis_url: str) -> None:
    with open_redis(redis_url) as client:
        for start in range(0, 1000, 100):
            send(client, [event(each) for each in range(start, start + 100)], log_length=200)
        assert 200 <= client.xlen(Channel.TASKS.log) < 400


def test_a_reader_skips_what_it_does_not_know(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with open_redis(redis_url) as client:
        client.xadd(Channel.TASKS.log, {"event": json.dumps({"type": "TASK_DREAMT"})})
        send(client, [event(1)])
        found = read_events(client, {Channel.TASKS: BEGINNING})
    assert len(found) == 1
    assert "is left out" in caplog.text


def test_waiting_for_events_ends_before_the_socket_does(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url, socket_timeout=0.4) as client:
        assert read_events(client, {Channel.TASKS: BEGINNING}, wait_s=60) == []


def test_logging_is_quiet_when_all_is_well(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    publisher = RedisPublisher(redis_url)
    publisher.publish(event(1))
    publisher.close()
    assert caplog.text == ""


def test_the_example_of_the_docs_runs(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "events.md").read_text()
    (example,) = re.findall(r"```py\n(.*?)```", text, re.DOTALL)
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    with open_redis(redis_url) as client:
        send(client, [event(1), event(2)])
    scope: dict[str, redis.Redis] = {}
    exec(example, scope)
    scope["client"].close()
    assert capsys.readouterr().out.count("TASK_STARTED running") == 2
