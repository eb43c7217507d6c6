"""What a run costs beside its rows: the fleet, dagster-celery and stock Dagster in turn."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from fleet_client import Client
from fleet_options import Options
from fleet_phases import Phases, median_phases, phases_of
from fleet_rivals import Rival
from fleet_stack import FleetStack
from fleet_templates import write_echo, write_greeting


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns the phases of echo runs with a row in each shard, by system and number of shards."""
    jobs = {shards: write_echo(library, f"echo{shards}", rows=shards) for shards in options.shards}
    greeting = write_greeting(library, options.workers)
    most = {"stock": options.max_stock_shards, "celery": options.max_celery_shards}
    runs: dict[tuple[str, int], list[Phases]] = {}
    with ExitStack() as systems:
        stack = systems.enter_context(FleetStack(folder, library, workers=options.workers))
        clients = {"fleet": stack.client}
        for name in most:
            rival = Rival(name, folder, library, stack, options.workers)
            clients[name] = systems.enter_context(rival).client
        for client in clients.values():
            client.run(greeting)
        # In turns: a busy moment of the machine hits all of them.
        for _ in range(options.rounds):
            for shards, job in jobs.items():
                for name, client in clients.items():
                    if shards <= most.get(name, shards):
                        runs.setdefault((name, shards), []).append(_run(client, job))
    return {
        "systems": {
            name: {
                str(shards): _summary(runs[name, shards], shards)
                for shards in jobs
                if (name, shards) in runs
            }
            for name in clients
        },
        "left_out": {
            name: [shards for shards in jobs if shards > limit] for name, limit in most.items()
        },
        "against_fleet": _ratios(runs),
    }


def _run(client: Client, job: str) -> Phases:
    run_id = client.create(job)
    submitted = client.submit(run_id)
    client.wait([run_id])
    return phases_of(client.instance, run_id, submitted)


def _summary(runs: list[Phases], shards: int) -> dict[str, object]:
    medians = median_phases(runs)
    return {
        "rounds_wall_s": [round(each.wall_s, 3) for each in runs],
        "median": medians,
        "run_s": round(_run_s(runs), 4),
        "wall_s_per_shard": round(medians["wall_s"] / shards, 4),
        "shards_s_per_shard": round(medians["shards_s"] / shards, 4),
        "aggregate_wait_s_max": round(max(each.aggregate_wait_s for each in runs), 4),
    }


def _run_s(runs: Sequence[Phases]) -> float:
    """Returns the median seconds without the wait for the daemon's look into its queue."""
    return statistics.median(each.wall_s - each.queue_s for each in runs)


def _ratios(
    runs: Mapping[tuple[str, int], list[Phases]],
) -> dict[str, dict[str, dict[str, float]]]:
    """Returns how many times the fleet's median seconds the others took, by shards."""
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for (name, shards), measured in runs.items():
        if name == "fleet":
            continue
        fleet = runs["fleet", shards]
        walls = [statistics.median(each.wall_s for each in one) for one in (measured, fleet)]
        ratios.setdefault(name, {})[str(shards)] = {
            "wall_s": round(walls[0] / walls[1], 2),
            "run_s": round(_run_s(measured) / _run_s(fleet), 2),
        }
    return ratios
