"""An event as one line for people."""

from __future__ import annotations

from rich.text import Text

from mloc_dagster.cli.wording import count
from mloc_dagster.events.model import Event, TaskEvent, WorkerEvent
from mloc_dagster.events.payloads import Payload, WorkerPayload
from mloc_dagster.planning.shards import shard_key

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
