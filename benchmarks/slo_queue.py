"""A queue of runs with mixed SLOs, served by a few slots: simulated time, the real ordering."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from mloc_dagster.fleet import QueuedRun, estimate_s, queue_order, raised_priorities

TICK_S = 1.0
"""As often as the sensor looks."""

CLASSES = (
    # share of runs, SLO in seconds, mean service time in seconds
    (0.3, 15.0, 2.0),
    (0.3, 60.0, 4.0),
    (0.2, 300.0, 8.0),
    (0.2, None, 6.0),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a queue.

    Attributes:
        runs: Runs with an SLO.
        missed: How many of them ended late.
        late_s: Seconds by which they were late, in sum.
        longest_wait_s: The longest that any run waited, those without an SLO among them.
        writes: Priorities that were written.
    """

    runs: int
    missed: int
    late_s: float
    longest_wait_s: float
    writes: int


def simulate(
    chance: random.Random, *, reorder: bool, count: int = 400, slots: int = 4, load: float = 1.05
) -> Outcome:
    """Serves `count` runs, with Dagster's order of the queue and its dequeueing once a second.

    Args:
        chance: Draws arrivals, kinds and service times; the same for both ways of ordering.
        reorder: Whether priorities are raised, by the function that the sensor calls.
        count: Runs.
        slots: Runs at the same time.
        load: Work that arrives, as a share of what the slots can do.
    """
    mean_s = sum(share * seconds for share, _, seconds in CLASSES)
    arrivals: list[tuple[QueuedRun, int, float]] = []
    at = 0.0
    for number in range(count):
        at += chance.expovariate(load * slots / mean_s)
        (kind,) = chance.choices(range(len(CLASSES)), [each[0] for each in CLASSES])
        service_s = chance.gammavariate(4, CLASSES[kind][2] / 4)
        arrivals.append((QueuedRun(f"r{number}", at, CLASSES[kind][1]), kind, service_s))

    service = {run.run_id: (kind, seconds) for run, kind, seconds in arrivals}
    history: dict[int, list[float]] = {kind: [] for kind in range(len(CLASSES))}
    waiting: list[QueuedRun] = []
    running: list[tuple[float, QueuedRun]] = []
    ended: list[tuple[QueuedRun, float, float]] = []
    coming = [run for run, _, _ in arrivals]
    now, writes = 0.0, 0
    while len(ended) < count:
        now += TICK_S
        while coming and coming[0].submitted_s <= now:
            waiting.append(coming.pop(0))
        for end, run in [each for each in running if each[0] <= now]:
            running.remove((end, run))
            kind, seconds = service[run.run_id]
            history[kind].append(seconds)
            ended.append((run, end - seconds, end))
        if reorder:
            waiting = [
                replace(run, estimate_s=estimate_s(history[service[run.run_id][0]][-20:]))
                for run in waiting
            ]
            raised = raised_priorities(waiting, now)
            writes += len(raised)
            waiting = [
                replace(run, priority=raised.get(run.run_id, run.priority)) for run in waiting
            ]
        for run in queue_order(waiting)[: slots - len(running)]:
            waiting.remove(run)
            running.append((now + service[run.run_id][1], run))

    promised = [(run, end) for run, _, end in ended if run.slo_s is not None]
    late = [end - run.submitted_s - (run.slo_s or 0) for run, end in promised]
    return Outcome(
        runs=len(promised),
        missed=sum(each > 0 for each in late),
        late_s=round(sum(each for each in late if each > 0), 1),
        longest_wait_s=round(max(start - run.submitted_s for run, start, _ in ended), 1),
        writes=writes,
    )
