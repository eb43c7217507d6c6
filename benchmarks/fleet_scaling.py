"""How throughput grows with workers, where each has the same work and none needs CPU for it.

The rows sleep: a machine with few cores can carry many workers, and what bends is the fleet.
"""

from __future__ import annotations

import time
from pathlib import Path

from fleet_cpu import CpuWindow
from fleet_options import Options
from fleet_phases import phases_of
from fleet_stack import FleetStack
from fleet_templates import write_echo, write_greeting

_IDLE_S = 5.0


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns rows a second for each number of workers, against as many times one worker's."""
    rows_per_shard = max(1, round(options.shard_s / options.row_s))
    jobs = {
        count: (
            write_greeting(library, count),
            write_echo(
                library,
                f"scale{count}",
                rows=count * options.shards_per_worker * rows_per_shard,
                shards=count * options.shards_per_worker,
                delay_s=options.row_s,
            ),
        )
        for count in options.sizes
    }
    with FleetStack(folder, library, workers=0) as stack:
        sizes = {}
        for count, (greet, scale) in jobs.items():
            stack.grow_to(count)
            stack.client.run(greet)
            rows = count * options.shards_per_worker * rows_per_shard
            sizes[str(count)] = _at(stack, scale, rows, count / options.row_s)
    return {"rows_per_shard": rows_per_shard, "sizes": sizes}


def _at(stack: FleetStack, job: str, rows: int, linear: float) -> dict[str, object]:
    """Measures one size.

    Args:
        stack: Has the workers.
        job: The work.
        rows: Its rows.
        linear: Rows a second if nothing but the sleeping took time.
    """
    groups = stack.process_groups()
    window = CpuWindow(groups)
    time.sleep(_IDLE_S)
    idle = window.cores()
    run_id = stack.client.create(job)
    window = CpuWindow(groups)
    submitted = stack.client.submit(run_id)
    stack.client.wait([run_id])
    cores = window.cores()
    phases = phases_of(stack.client.instance, run_id, submitted)
    run_s = phases.wall_s - phases.queue_s
    most = max(cores, key=lambda name: cores[name])
    return {
        "rows": rows,
        "rows_per_s": round(rows / phases.shards_s, 3),
        "linear_rows_per_s": linear,
        "efficiency": round(rows / phases.shards_s / linear, 4),
        "efficiency_with_plan_and_aggregation": round(rows / run_s / linear, 4),
        "mean_shard_s": round(phases.shard_s, 4),
        "shards_s": round(phases.shards_s, 3),
        "wall_s": round(phases.wall_s, 3),
        "cores_idle": idle,
        "cores": cores,
        "most_cpu": most,
        "cores_of_all": round(sum(cores.values()), 3),
    }
