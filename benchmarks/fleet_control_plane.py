"""What carrying tasks costs: CPU of the control plane while workers are busy all the time."""

from __future__ import annotations

import time
from pathlib import Path

from fleet_cpu import CpuWindow
from fleet_options import Options
from fleet_phases import shard_times
from fleet_stack import CONTROL_PLANE, FleetStack, until
from fleet_templates import write_echo, write_greeting

from mloc_dagster.fleet import WorkerStatus


def measure(options: Options, folder: Path, library: Path) -> dict[str, object]:
    """Returns the share of one core that each component uses, idle and under load.

    A task is one shard of one row, which sleeps for as long as the workers are just enough.
    """
    delay_s = options.busy_workers / options.rate
    job = write_echo(library, "busy", rows=1, delay_s=delay_s)
    greeting = write_greeting(library, options.busy_workers)
    with FleetStack(folder, library, workers=options.busy_workers) as stack:
        stack.client.run(greeting)
        stack.client.run(job)
        groups = stack.process_groups()
        window = CpuWindow(groups)
        time.sleep(options.window_s / 4)
        idle = window.cores()
        before = [_submit(stack, job) for _ in range(options.busy_workers)]
        until(lambda: _running(stack) == options.busy_workers, "busy workers")
        window, began = CpuWindow(groups), time.time()
        during = _submit_steadily(stack, job, options)
        busy, ended = window.cores(), time.time()
        stack.client.wait([*before, *during])
        shards = [
            each for run in (*before, *during) for each in shard_times(stack.client.instance, run)
        ]
    worked_s = sum(max(0.0, min(end, ended) - max(start, began)) for start, end in shards)
    return {
        "seconds": round(ended - began, 2),
        "tasks_submitted": len(during),
        "tasks_ended": sum(began <= end <= ended for _, end in shards),
        "workers_busy": round(worked_s / (options.busy_workers * (ended - began)), 3),
        "cores_idle": idle,
        "cores_busy": busy,
        "control_plane_cores_idle": _sum(idle),
        "control_plane_cores_busy": _sum(busy),
        "note": "runs are created and submitted within the window, by the benchmark's process, "
        "whose own CPU is not counted; PostgreSQL's and Redis' part of it is",
    }


def _submit(stack: FleetStack, job: str) -> str:
    run_id = stack.client.create(job)
    stack.client.submit(run_id)
    return run_id


def _submit_steadily(stack: FleetStack, job: str, options: Options) -> list[str]:
    """Submits `rate` tasks a second for the length of the window, on time."""
    started, run_ids = time.monotonic(), []
    while (due := started + len(run_ids) / options.rate) < started + options.window_s:
        time.sleep(max(0.0, due - time.monotonic()))
        run_ids.append(_submit(stack, job))
    time.sleep(max(0.0, started + options.window_s - time.monotonic()))
    return run_ids


def _running(stack: FleetStack) -> int:
    return sum(each.status is WorkerStatus.RUNNING for each in stack.step_workers().values())


def _sum(cores: dict[str, float]) -> float:
    return round(sum(cores[name] for name in CONTROL_PLANE), 4)
