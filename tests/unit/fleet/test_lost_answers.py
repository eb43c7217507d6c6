"""Calls that Redis answered just before it died are sent again by the client: they count once."""

from __future__ import annotations

from mloc_dagster.fleet.redis.engine import RedisFleetEngine
from mloc_dagster.fleet.redis.records import (
    connect,
    inbox_key,
    lease_key,
    queue_key,
    running_key,
    script,
    ticket_key,
)


def test_a_message_that_is_said_twice_is_heard_once(redis_url: str) -> None:
    with connect(redis_url) as client:
        client.hset(ticket_key("t"), mapping={"state": "running", "fence": 7})
        keys = [ticket_key("t"), lease_key("t"), inbox_key("run"), running_key("cpu")]
        say = script(client, "publish")
        first = ["t", 7, "run", "started", "running", "call-1"]
        last = ["t", 7, "run", "done", "done", "call-2"]
        assert [say(keys=keys, args=each) for each in (first, first, last, last)] == [1, 1, 1, 1]
        assert RedisFleetEngine(client).messages("run") == ["started", "done"]
        assert say(keys=keys, args=["t", 7, "run", "more", "running", "call-3"]) == 0
        assert not client.exists(queue_key("cpu"))


def test_messages_that_are_removed_twice_take_no_other_along(redis_url: str) -> None:
    with connect(redis_url) as client:
        engine = RedisFleetEngine(client)
        client.rpush(inbox_key("run"), "one", "two", "three")
        engine.remove_messages("run", ["one", "two"])
        engine.remove_messages("run", ["one", "two"])
        assert engine.messages("run") == ["three"]
