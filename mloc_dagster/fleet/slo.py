"""Which queued run should go next so that as many as possible keep their SLO.

The order is that of *slack*: the seconds a run can still wait, `SLO - waited - estimated run time`.
As every run's slack shrinks by a second each second, that is the order of the latest moments at
which runs may start, and it changes only when runs come, go, or become late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

DEFAULT_SLO_S = 3_600.0
"""What a run without an SLO is taken to have: it gives way, but not for ever."""

_STEP = 64
"""Distance between new priorities, so that a run fits between two others without moving them."""


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """A run that waits.

    Attributes:
        run_id: The run.
        submitted_s: When it was submitted, in seconds since 1970.
        slo_s: Seconds from submission to the last result that its template promises; None
            without a promise.
        estimate_s: Seconds that it will take, as far as history tells.
        priority: Its `dagster/priority`.
        pinned: Whether somebody else gave it that priority; it is then left alone.
    """

    run_id: str
    submitted_s: float
    slo_s: float | None
    estimate_s: float = 0.0
    priority: int = 0
    pinned: bool = False


def estimate_s(durations_s: Sequence[float], fallback_s: float = 0.0) -> float:
    """Returns how long a run of a job will take: the median of its last runs.

    Args:
        durations_s: Of the last runs that succeeded.
        fallback_s: For a job that never ran.
    """
    return median(durations_s) if durations_s else fallback_s


def slack_s(run: QueuedRun, now_s: float) -> float:
    """Returns how many seconds a run can still wait; below zero it cannot keep its SLO."""
    promised = DEFAULT_SLO_S if run.slo_s is None else run.slo_s
    return run.submitted_s + promised - run.estimate_s - now_s


def latest_start_s(run: QueuedRun, now_s: float) -> float:
    """Returns the moment by which a run has to start, in seconds since 1970.

    A run that cannot keep its SLO any more gets the same time once more as its next goal, then
    twice that, and so on. Running it first would make others late that can still be on time;
    without a goal it might wait for ever.
    """
    promised = DEFAULT_SLO_S if run.slo_s is None else run.slo_s
    spent = now_s - run.submitted_s + run.estimate_s
    while spent > promised:
        promised *= 2
    return run.submitted_s + promised - run.estimate_s


def queue_order(runs: Sequence[QueuedRun]) -> list[QueuedRun]:
    """Returns runs as Dagster takes them: by priority, then as they came.

    Args:
        runs: In order of submission.
    """
    return sorted(runs, key=lambda run: -run.priority)


def wanted_order(runs: Sequence[QueuedRun], now_s: float) -> list[QueuedRun]:
    """Returns runs by slack, the shortest first; as they came where it is the same."""
    return sorted(runs, key=lambda run: latest_start_s(run, now_s))


def raised_priorities(runs: Sequence[QueuedRun], now_s: float) -> Mapping[str, int]:
    """Returns the priorities to write so that runs leave the queue in order of slack.

    Priorities are only ever raised, and of as few runs as possible. Without an SLO in the queue
    there is nothing to do, nor when the order is right already.

    Args:
        runs: All queued runs, in order of submission.
        now_s: Seconds since 1970.

    Returns:
        New priorities by run id, the most urgent run first.
    """
    free = [run for run in runs if not run.pinned]
    if all(run.slo_s is None for run in free):
        return {}
    wanted = wanted_order(free, now_s)
    if wanted == queue_order(free):
        return {}
    came = {run.run_id: place for place, run in enumerate(free)}
    changed: dict[str, int] = {}
    # From the last to the first, each before the one that follows it.
    behind: tuple[int, int] | None = None
    for place in range(len(wanted) - 1, -1, -1):
        run = wanted[place]
        ahead = wanted[place - 1].priority if place else None
        priority = run.priority
        if behind is not None and (-priority, came[run.run_id]) > (-behind[0], behind[1]):
            priority = _between(behind[0], ahead)
            changed[run.run_id] = priority
        behind = (priority, came[run.run_id])
    return dict(reversed(changed.items()))


def _between(behind: int, ahead: int | None) -> int:
    """Returns a priority above `behind`, below `ahead` if there is room."""
    if ahead is None or ahead <= behind + 1:
        return behind + (_STEP if ahead is None else 1)
    return (behind + ahead) // 2


@dataclass(frozen=True, slots=True)
class PromisedRun:
    """A run with an SLO.

    Attributes:
        run_id: The run.
        submitted_s: When it was submitted, in seconds since 1970.
        slo_s: Seconds from then in which it should be done.
        ended_s: When it ended; None while it has not.
        told_late_s: By how much it was said to be late; None when nothing was said yet.
    """

    run_id: str
    submitted_s: float
    slo_s: float
    ended_s: float | None = None
    told_late_s: float | None = None


def late_s(run: PromisedRun, now_s: float) -> float:
    """Returns by how many seconds a run is late, or ended late; 0 when it is not."""
    end = now_s if run.ended_s is None else run.ended_s
    return max(0.0, end - run.submitted_s - run.slo_s)
