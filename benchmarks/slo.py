"""Runs that miss their SLO: the queue in order of slack against first come, first served.

Time is simulated, so that the figures are the same everywhere; the order is the one of production:
`mloc_dagster.fleet.slo`, called once a second with estimates from what has run, as the sensor does,
and Dagster's rule for the queue (priority, then age). Both ways get the same arrivals and the same
service times.
"""

from __future__ import annotations

import random
from dataclasses import asdict

from record import record
from slo_queue import CLASSES, Outcome, simulate

LOADS = (0.8, 0.95, 1.05, 1.3, 2.0, 4.0)
SEEDS = range(10)
RUNS = 400
SLOTS = 4


def total(outcomes: list[Outcome]) -> dict[str, float]:
    """Adds up the outcomes of several seeds."""
    rows = [asdict(each) for each in outcomes]
    sums = {key: round(sum(row[key] for row in rows), 1) for key in rows[0]}
    sums["longest_wait_s"] = max(row["longest_wait_s"] for row in rows)
    return sums


def main() -> None:
    """Simulates and records."""
    compared = {}
    for load in LOADS:
        compared[f"load {load}"] = {
            name: total(
                [
                    simulate(
                        random.Random(seed), reorder=reorder, count=RUNS, slots=SLOTS, load=load
                    )
                    for seed in SEEDS
                ]
            )
            for name, reorder in (("first_come", False), ("slack", True))
        }
    record(
        "slo",
        {
            "simulated": True,
            "seeds": len(SEEDS),
            "runs_each": RUNS,
            "slots": SLOTS,
            "classes_share_slo_s_mean_service_s": [list(each) for each in CLASSES],
            "compared": compared,
        },
    )


if __name__ == "__main__":
    main()
