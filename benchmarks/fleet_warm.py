"""What it saves that a worker keeps its model: the first row on a cold and on a warm one."""

from __future__ import annotations

import statistics
from pathlib import Path

from fleet_options import Options
from fleet_phases import phases_of
from fleet_stack import FleetStack, until
from fleet_templates import write_chat

from mloc_dagster.events import (
    BEGINNING,
    Channel,
    TaskEvent,
    TaskEventType,
    open_redis,
    read_events,
)

_LIMIT = 100_000


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns the seconds from a shard's start to its only row, cold and warm, and their ratio."""
    job = write_chat(library)
    rounds = []
    with FleetStack(folder, library, workers=1) as stack:
        for number in range(options.rounds):
            if number:
                stack.replace_worker()
            cold, warm = (_run(stack, job) for _ in range(2))
            if cold.pop("worker") != warm.pop("worker"):
                raise SystemExit("the worker changed between the two runs")
            rounds.append({"cold": cold, "warm": warm})
    medians = {
        kind: statistics.median(each[kind]["first_row_s"] for each in rounds)
        for kind in ("cold", "warm")
    }
    return {
        "rounds": rounds,
        "median_first_row_s": medians,
        "ratio": round(medians["cold"] / medians["warm"], 1),
    }


def _run(stack: FleetStack, job: str) -> dict[str, object]:
    (worker,) = stack.step_workers().values()
    run_id = stack.client.create(job)
    submitted = stack.client.submit(run_id)
    stack.client.wait([run_id])
    times = until(lambda: _row_times(stack, run_id), "the shard's events")
    started, first_row = times
    phases = phases_of(stack.client.instance, run_id, submitted)
    return {
        "first_row_s": round(first_row - started, 4),
        "wall_s": round(phases.wall_s, 3),
        "worker": worker.pid,
    }


def _row_times(stack: FleetStack, run_id: str) -> tuple[float, float] | None:
    """Returns when the run's only shard began and had its first row; None before it is known.

    Events leave a worker from a thread of its own, perhaps after the run has ended.
    """
    with open_redis(stack.plan.redis_url) as client:
        logged = read_events(client, {Channel.TASKS: BEGINNING}, limit=_LIMIT)
    first: dict[TaskEventType, float] = {}
    for each in logged:
        event = each.event
        if isinstance(event, TaskEvent) and event.run_id == run_id:
            first.setdefault(event.type, event.ts.timestamp())
    if TaskEventType.TASK_PROGRESS not in first:
        return None
    return first[TaskEventType.SHARD_STARTED], first[TaskEventType.TASK_PROGRESS]
