"""Runs a second when many are submitted at once: the fleet against stock Dagster."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from fleet_client import Client
from fleet_options import Options
from fleet_rivals import Rival
from fleet_stack import FleetStack
from fleet_templates import write_echo, write_greeting


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns the rates of both, in turns, and their ratio."""
    job = write_echo(library, "single", rows=1)
    greeting = write_greeting(library, options.workers)
    with (
        FleetStack(folder, library, workers=options.workers) as stack,
        Rival("stock", folder, library, stack, options.workers) as stock,
    ):
        systems = {
            "fleet": (stack.client, options.runs),
            "stock": (stock.client, options.stock_runs),
        }
        for client, _ in systems.values():
            client.run(greeting)
            client.run(job)
        rounds = [
            {name: _burst(client, job, count) for name, (client, count) in systems.items()}
            for _ in range(options.rounds)
        ]
    rates = {
        name: statistics.median(each[name]["runs_per_s"] for each in rounds) for name in systems
    }
    return {
        "rounds": rounds,
        "median_runs_per_s": rates,
        "ratio": round(rates["fleet"] / rates["stock"], 2),
        "note": "each rate is over its own number of runs; that of stock Dagster, which runs ten "
        "at a time, is taken to hold for more of them",
    }


def _burst(client: Client, job: str, count: int) -> dict[str, float]:
    """Submits runs that were created before; measures to the last one's success."""
    started = time.monotonic()
    run_ids = [client.create(job) for _ in range(count)]
    created_s = time.monotonic() - started
    submitted = [client.submit(each) for each in run_ids]
    ended = client.wait(run_ids)
    return {
        "runs": count,
        "creation_s": round(created_s, 3),
        "submission_s": round(submitted[-1] - submitted[0], 3),
        "seconds": round(ended - submitted[0], 3),
        "runs_per_s": round(count / (ended - submitted[0]), 4),
    }
