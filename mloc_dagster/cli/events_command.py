"""`mloc events`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import sleep

import typer
from rich.console import Console
from rich.text import Text

from mloc_dagster.cli.terminal import OK
from mloc_dagster.display import count, counts_in_words
from mloc_dagster.errors import InputError
from mloc_dagster.events import (
    STREAM_AWAY,
    Channel,
    Event,
    LoggedEvent,
    Payload,
    StreamClient,
    TaskEvent,
    WorkerEvent,
    WorkerPayload,
    open_redis,
    read_events,
)
from mloc_dagster.fleet import fleet_url, require_fleet
from mloc_dagster.planning import shard_key

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd])")
_DEFAULT_SINCE = "1h"
_WAIT_S = 3.0
_PAUSE_S = 1.0


@dataclass(frozen=True, slots=True)
class EventsOptions:
    """What `mloc events` was asked for.

    Attributes:
        follow: Whether to go on with what happens from now on.
        since: A duration such as `10m`, or an RFC 3339 time.
        as_json: Whether to print events as they are on the wire, one a line.
        task: A task's id, or how it starts.
        workers: Whether to print events of workers, too.
    """

    follow: bool = False
    since: str | None = None
    as_json: bool = False
    task: str | None = None
    workers: bool = False


def show_events(options: EventsOptions) -> int:
    """Prints events; without `follow` those that there are.

    Returns:
        The exit code.

    Raises:
        InputError: If there is no Redis to ask, or `since` says no time.
        TransientError: If Redis does not answer.
    """
    now = datetime.now(UTC)
    start = now if options.follow and options.since is None else None
    start = start or since_time(options.since or _DEFAULT_SINCE, now)
    url = fleet_url()
    require_fleet(url)
    # Nothing is wrapped: a line is an event, for people with wide windows and for grep.
    console = Console(soft_wrap=True, highlight=False)
    with open_redis(url) as client:
        for logged in _events(client, start, options):
            if not _is_wanted(logged, options):
                continue
            if options.as_json:
                typer.echo(logged.event.model_dump_json())
            else:
                console.print(event_line(logged.event))
            if options.follow:
                sys.stdout.flush()
    return OK


def since_time(text: str, now: datetime) -> datetime:
    """Returns the time that `--since` means.

    Raises:
        InputError: If it is neither a duration nor a time.
    """
    duration = _DURATION.fullmatch(text.strip())
    if duration is not None:
        return now - timedelta(seconds=float(duration[1]) * _UNITS[duration[2]])
    try:
        given = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"--since {text!r} is neither a duration such as 30s, 10m, 2h or 1d"
            " nor a time such as 2026-01-31T12:00:00Z"
        ) from error
    # A time without a zone is that of the clock on the wall.
    return given.astimezone(UTC)


def _events(client: StreamClient, start: datetime, options: EventsOptions) -> Iterator[LoggedEvent]:
    position = f"{max(0, int(start.timestamp() * 1000) - 1)}-0"
    channels = [Channel.TASKS, *([Channel.WORKERS] if options.workers else [])]
    after = dict.fromkeys(channels, position)
    away = False
    while True:
        try:
            found = read_events(client, after, wait_s=_WAIT_S if options.follow else 0)
        except STREAM_AWAY as error:
            if not options.follow:
                raise
            if not away:
                sys.stderr.write(f"mloc: Redis does not answer, waiting for it: {error}\n")
            away = True
            sleep(_PAUSE_S)
            continue
        away = False
        for each in found:
            after[each.channel] = each.position
        yield from sorted(found, key=_arrival)
        if not found and not options.follow:
            return


def _arrival(logged: LoggedEvent) -> tuple[int, ...]:
    return tuple(int(part) for part in logged.position.split("-"))


def _is_wanted(logged: LoggedEvent, options: EventsOptions) -> bool:
    if options.task is None:
        return True
    event = logged.event
    return isinstance(event, TaskEvent) and event.task_id.startswith(options.task)


_COLOURS = {
    "queued": "cyan",
    "running": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "yellow",
    "dead_letter": "bold red",
    "late": "yellow",
    "LOST": "red",
}
_KIND_WIDTH = 18


def event_line(event: Event) -> Text:
    """Returns time, type, task, shard, worker, and what else there is to say.

    Args:
        event: Of a task or a worker.
    """
    moment = event.ts.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    line = Text(f"{moment}  ", style="dim")
    line.append(f"{event.type.value:<{_KIND_WIDTH}}", style=_COLOURS.get(event.status.value, ""))
    parts = _of_task(event) if isinstance(event, TaskEvent) else _of_worker(event)
    line.append("  " + "  ".join(each for each in parts if each), style="default")
    return line


def _of_task(event: TaskEvent) -> list[str]:
    return [
        event.task_id,
        "" if event.task_id.endswith(f"-{event.node}") else event.node,
        _shard(event),
        f"on {event.worker_id}" if event.worker_id else "",
        _payload(event.payload),
        _one_line(event.error or ""),
    ]


def _shard(event: TaskEvent) -> str:
    if event.shard is None:
        return ""
    place = f"shard {shard_key(event.shard.index)}"
    total = f" of {event.shard.total}" if event.shard.total else ""
    attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
    return f"{place}{total}{attempt}"


def _payload(payload: Payload) -> str:
    parts = [
        f"{count(payload.resumed, 'row')} already there" if payload.resumed else "",
        count(payload.rows, "row") if payload.rows else "",
        *counts_in_words(payload.counts),
        count(payload.tokens, "token") if payload.tokens else "",
        count(payload.errors, "error") if payload.errors else "",
        f"{payload.reused:,} reused" if payload.reused else "",
        f"worker lost {payload.losses}×" if payload.losses else "",
        _one_line(payload.reason or ""),
    ]
    if payload.slo is not None:
        parts.append(f"{payload.slo.late_s:.1f} s later than {payload.slo.seconds:g} s")
    return ", ".join(each for each in parts if each)


def _of_worker(event: WorkerEvent) -> list[str]:
    return [event.worker_id, event.status.value, _holdings(event.payload)]


def _holdings(payload: WorkerPayload) -> str:
    parts = [
        f"{payload.host} pid {payload.pid}" if payload.host else "",
        ", ".join(payload.queues),
        f"runs {', '.join(payload.running)}" if payload.running else "",
        f"warm {', '.join(payload.warm_models)}" if payload.warm_models else "",
        _one_line(payload.reason or ""),
    ]
    return "  ".join(each for each in parts if each)


def _one_line(text: str) -> str:
    return " ".join(text.split())
