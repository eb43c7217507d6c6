"""Events in Redis: how they are written and read, when Redis is there."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import cast
from urllib.parse import urlsplit

import redis
from pydantic import ValidationError
from redis.backoff import NoBackoff
from redis.retry import Retry

from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.events.log import (
    LOG_LENGTH,
    Channel,
    LoggedEvent,
    channel_of,
    decode,
    known_in,
)
from mloc_dagster.events.model import Event

_log = logging.getLogger(__name__)

KNOWN_S = 3_600
"""Seconds after the last event of a run in which its facts are not published again."""

_SOCKET_TIMEOUT_S = 5.0
_MARGIN_S = 1.0

_FIELD = b"event"

StreamClient = redis.Redis
"""What `open_redis` opens."""

STREAM_AWAY = (redis.RedisError,)
"""What is raised while Redis is away, or refuses."""


def open_redis(url: str) -> redis.Redis:
    """Opens a client that fails soon when Redis is away: whoever holds it decides what then."""
    return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        socket_connect_timeout=2,
        socket_timeout=_SOCKET_TIMEOUT_S,
        health_check_interval=15,
        retry=Retry(NoBackoff(), 1),
    )


def check_redis(url: str) -> None:
    """Returns if Redis answers now, and not while it still reads its file.

    Raises:
        InputError: If it refuses the user or the password.
        TransientError: If it does not answer.
    """
    with redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url, socket_connect_timeout=2, socket_timeout=_SOCKET_TIMEOUT_S, retry=None
    ) as client:
        try:
            client.ping()  # pyright: ignore[reportUnknownMemberType]
        except redis.AuthenticationError as error:
            who = urlsplit(url).username or "default"
            raise InputError(
                f"the fleet's Redis at {_place(url)} refuses the user {who!r}, "
                f"correct the user or password of its URL: {error}"
            ) from error
        except (redis.RedisError, OSError) as error:
            raise TransientError(
                f"the fleet's Redis at {_place(url)} does not answer: {error}"
            ) from error


def _place(url: str) -> str:
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or 6379}"


@cache
def _publish_script() -> str:
    return (resources.files("mloc_dagster.events") / "publish.lua").read_text()


def send(client: redis.Redis, events: Sequence[Event], *, log_length: int = LOG_LENGTH) -> int:
    """Publishes events and appends them to their logs, in one transaction.

    Args:
        client: Redis.
        events: In order.
        log_length: Events that each log keeps, about.

    Returns:
        How many were new; what was published before is left out.

    Raises:
        redis.RedisError: If Redis cannot be reached; then all or none arrived, and sending them
            once more is safe.
    """
    if not events:
        return 0
    keys: list[str] = []
    arguments: list[str | int] = [log_length, KNOWN_S]
    for event in events:
        channel = channel_of(event)
        keys += [channel.log, known_in(event)]
        fact = "" if event.is_momentary else event.event_id
        arguments += [channel.value, event.model_dump_json(), fact]
    script = client.register_script(_publish_script())
    return cast("int", script(keys=keys, args=arguments))


def read_events(
    client: redis.Redis,
    after: Mapping[Channel, str],
    *,
    limit: int = 500,
    wait_s: float = 0,
) -> list[LoggedEvent]:
    """Reads the logs of channels from where the caller stands.

    What this version does not understand is left out, with a warning.

    Args:
        client: Redis.
        after: The channels to read, each with the position to go on from: `BEGINNING`, that of a
            `LoggedEvent`, or `<milliseconds since 1970>-0` for a time.
        limit: Events of a channel at most.
        wait_s: Seconds to wait for the first event; less than asked for where the client's
            socket would time out before, so callers that follow a log call again.

    Raises:
        redis.RedisError: If Redis cannot be reached.
    """
    block_ms = int(min(wait_s, _longest_wait_s(client)) * 1000) or None
    streams = {channel.log: position for channel, position in after.items()}
    # redis-py's types know neither the shape of the reply nor that keys may be texts.
    reply = cast(
        "list[tuple[bytes | str, list[tuple[bytes | str, Mapping[bytes | str, bytes]]]]] | None",
        client.xread(streams, count=limit, block=block_ms),  # pyright: ignore
    )
    found: list[LoggedEvent] = []
    for name, entries in reply or []:
        channel = Channel(_text(name).removesuffix(".log"))
        for position, fields in entries:
            data = fields.get(_FIELD) or fields.get(_FIELD.decode())
            try:
                event = decode(channel, data or b"")
            except ValidationError as error:
                _log.warning("an event at %s is left out: %s", _text(position), error)
                continue
            found.append(LoggedEvent(channel, _text(position), event))
    return found


def last_position(client: redis.Redis, channel: Channel) -> str:
    """Returns the position of the newest event of a channel."""
    newest = cast(
        "list[tuple[bytes | str, object]]",
        client.xrevrange(channel.log, count=1),  # pyright: ignore[reportUnknownMemberType]
    )
    return _text(newest[0][0]) if newest else "0"


def _longest_wait_s(client: redis.Redis) -> float:
    given = cast(
        "Mapping[str, float | None]",
        client.connection_pool.connection_kwargs,  # pyright: ignore[reportUnknownMemberType]
    ).get("socket_timeout", _SOCKET_TIMEOUT_S)
    return float("inf") if given is None else max(given - _MARGIN_S, given / 2)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
