"""Where the seconds of a run went, from the event log of its Dagster."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import dagster as dg
from dagster import DagsterEventType, EventLogEntry


@dataclass(frozen=True, slots=True)
class Phases:
    """The seconds of one run, by what it waited for; but for the first and last they add up.

    Attributes:
        wall_s: From the submission to the run's success.
        queue_s: Until the daemon took it out of the queue; it looks once a second.
        start_s: Until the run began: a process of its own, or a warm run worker.
        plan_s: Until the first shard began.
        shards_s: Until the last shard had ended.
        aggregate_wait_s: Until the aggregation began.
        rest_s: Aggregation, export, checks, and the end of the run.
        shard_s: Mean length of a shard's step.
    """

    wall_s: float
    queue_s: float
    start_s: float
    plan_s: float
    shards_s: float
    aggregate_wait_s: float
    rest_s: float
    shard_s: float


def phases_of(instance: dg.DagsterInstance, run_id: str, submitted: float) -> Phases:
    """Returns the phases of a run that succeeded.

    Args:
        instance: Has its event log.
        run_id: The run.
        submitted: When, in seconds since 1970.
    """
    entries = instance.all_logs(run_id)
    taken = _first(entries, DagsterEventType.RUN_STARTING)
    began = _first(entries, DagsterEventType.RUN_START)
    ended = _first(entries, DagsterEventType.RUN_SUCCESS)
    shards = _shards(entries)
    last = max(end for _, end in shards)
    first = min(start for start, _ in shards)
    aggregate = _first(entries, DagsterEventType.STEP_START, ".aggregate")
    return Phases(
        wall_s=ended - submitted,
        queue_s=taken - submitted,
        start_s=began - taken,
        plan_s=first - began,
        shards_s=last - first,
        aggregate_wait_s=aggregate - last,
        rest_s=ended - aggregate,
        shard_s=statistics.fmean(end - start for start, end in shards),
    )


def shard_times(instance: dg.DagsterInstance, run_id: str) -> list[tuple[float, float]]:
    """Returns when each shard of a run began and ended, in seconds since 1970."""
    return _shards(instance.all_logs(run_id))


def median_phases(runs: Sequence[Phases]) -> dict[str, float]:
    """Returns the median of each phase over runs of the same job."""
    rows = [asdict(each) for each in runs]
    return {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}


def _shards(entries: Sequence[EventLogEntry]) -> list[tuple[float, float]]:
    starts = _times(entries, DagsterEventType.STEP_START, ".run_shard")
    ends = _times(entries, DagsterEventType.STEP_SUCCESS, ".run_shard")
    return [(start, ends[step]) for step, start in starts.items()]


def _first(entries: Sequence[EventLogEntry], kind: DagsterEventType, step: str = "") -> float:
    return min(_times(entries, kind, step).values())


def _times(entries: Sequence[EventLogEntry], kind: DagsterEventType, step: str) -> dict[str, float]:
    """Returns the times of events of a kind by step; of the run's own under an empty name."""
    return {
        entry.step_key or "": entry.timestamp
        for entry in entries
        if entry.dagster_event is not None
        and entry.dagster_event.event_type is kind
        and step in (entry.step_key or "")
    }
