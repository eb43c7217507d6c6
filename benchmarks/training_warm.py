"""Start-up: seconds until the first optimiser step is done, on a fleet's worker and bare.

Each attempt at a training is a process of its own, which loads the model anew; a worker's first one
waits for the server that it is forked from to import PyTorch and TRL. `cold` is measured
after its cached pages of the installed packages were let go, as far as no process uses them.
"""

from __future__ import annotations

import os
import statistics
import sysconfig
from datetime import datetime
from pathlib import Path
from typing import Any

from fleet_stack import FleetStack, until
from training_options import Options
from training_tasks import Trainings

from mloc_dagster.events import (
    BEGINNING,
    Channel,
    TaskEvent,
    TaskEventType,
    open_redis,
    read_events,
)

JOB = "training"
ONE_STEP = {"max_steps": 1, "save_strategy": "no", "save_model": False}

_LIMIT = 100_000


def measure_warm(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the seconds to the first step: first, second, on a new worker, and bare."""
    trainings = Trainings(options, folder, library)
    trainings.write_template(JOB, "sft", ONE_STEP)
    evicted_mib = evict_packages()
    found: dict[str, list[Any]] = {"bare_cold": [_bare(trainings)], "bare": [_bare(trainings)]}
    names = ("first_task", "second_task", "first_task_of_a_new_worker")
    found |= {name: [] for name in names}
    with FleetStack(folder, library, workers=1) as stack:
        for number in range(options.rounds):
            if number:
                stack.replace_worker()
            evict_packages()
            for name in names:
                if name == names[-1]:
                    stack.replace_worker()
                found[name].append(_task(stack, folder / "results"))
    return {
        "evicted_mib": evicted_mib,
        "first_step_s": {
            name: round(statistics.median(_seconds(each) for each in runs), 2)
            for name, runs in found.items()
        },
        "runs": found,
    }


def evict_packages() -> int:
    """Asks the operating system to forget the installed packages' files; returns their MiB.

    Pages that a running process has mapped stay.
    """
    total = 0
    for path in Path(sysconfig.get_path("purelib")).rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            total += os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
    return total // 2**20


def _bare(trainings: Trainings) -> float:
    arguments = {key: each for key, each in ONE_STEP.items() if key != "save_model"}
    return trainings.run_bare("sft", **arguments).facts["first_step_s"]


def _seconds(run: Any) -> float:
    return run["first_step"] if isinstance(run, dict) else run


def _task(stack: FleetStack, results: Path) -> dict[str, float]:
    """Returns when a task's parts were done, in seconds since its shard began on the worker."""
    run_id = stack.client.create(JOB)
    stack.client.submit(run_id)
    stack.client.wait([run_id])
    began, stepped = until(lambda: _step_times(stack, run_id), "the training's events")
    told = _log_times(results / run_id)
    return {
        "process_started": round(told["starts attempt"] - began, 2),
        "process_spoke": round(told["memory:"] - began, 2),
        "pytorch_model_and_rows_loaded": round(told["rows are written"] - began, 2),
        "first_step": round(stepped - began, 2),
    }


def _step_times(stack: FleetStack, run_id: str) -> tuple[float, float] | None:
    """Returns when the run's only shard began and had its first step; None before it is known.

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


def _log_times(folder: Path) -> dict[str, float]:
    """Returns when the task's log first says each of the things that mark a part's end."""
    marks = ("starts attempt", "memory:", "rows are written")
    found: dict[str, float] = {}
    for path in folder.rglob("logs/*.log"):
        for line in path.read_text().splitlines():
            when, _, text = line.partition(" ")
            for mark in marks:
                if mark in text:
                    found.setdefault(mark, datetime.fromisoformat(when).timestamp())
    if missing := set(marks) - set(found):
        raise SystemExit(f"the logs below {folder} do not say {', '.join(sorted(missing))}")
    return found
