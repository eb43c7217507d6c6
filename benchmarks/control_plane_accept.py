"""How many submissions are accepted a second, and how soon their results are there."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import datetime
from itertools import batched
from pathlib import Path
from typing import Any

from control_plane_options import Options
from control_plane_stack import ControlPlane, echo, percentiles
from fleet_cpu import CpuWindow
from fleet_stack import until

from mloc_dagster.fleet import WorkerStatus

BODY_TASKS = 100
"""Templates of one body when many tasks are wanted and how fast they are accepted is no matter."""

_READ = 1_000
_ROWS_WHEN_WARM = 1_000
_BUSY_ROWS = 40_000


def measure_accept(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the figures of clients that submit an echo task each, again and again."""
    with ControlPlane(folder, library, workers=options.workers) as stack:
        stack.warm_up()
        return under_load(stack, options)


def measure_busy(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the same with workers that all compute something else meanwhile, then stop."""
    task = _inference(options.busy_workers)
    return _with_busy_workers(options, folder, library, task)


def measure_waiting(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the same with workers that are all busy, but for the processor."""
    rows = [f"row {number}" for number in range(_BUSY_ROWS)]
    more = f"  parallel: {{max_shards: {options.busy_workers}}}\n  echo: {{delay_s: 0.02}}\n"
    return _with_busy_workers(options, folder, library, echo("busy", rows, more))


def _with_busy_workers(options: Options, folder: Path, library: Path, busy: str) -> dict[str, Any]:
    with ControlPlane(folder, library, workers=options.busy_workers) as stack:
        stack.warm_up()
        (task_id,) = stack.submit(busy)
        until(lambda: _running(stack) == options.busy_workers, "busy workers")
        until(lambda: _finished(stack, task_id) >= _ROWS_WHEN_WARM, "rows of every worker")
        return under_load(stack, options, keeping_busy=task_id)


def measure_drain(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns how fast small tasks are done that were all accepted before the first is begun."""
    with ControlPlane(folder, library, workers=options.workers) as stack:
        stack.warm_up()
        with stack.dispatcher_paused():
            ids = submit_many(stack, options.burst)
            cpu, began = CpuWindow(stack.component_pids()), time.monotonic()
        seconds = stack.drained() - began
        return {
            "tasks": len(ids),
            "seconds": round(seconds, 2),
            "drained_per_s": round(len(ids) / seconds, 1),
            "cores": cpu.cores(),
            **readable(stack, ids),
        }


def under_load(
    stack: ControlPlane, options: Options, keeping_busy: str | None = None
) -> dict[str, Any]:
    """Lets clients submit, and waits until everything is done.

    Args:
        stack: With nothing to do, or nothing but the task that keeps it busy.
        options: How long and how many.
        keeping_busy: A task that is stopped when the last submission is there.
    """
    cpu, began = CpuWindow(stack.component_pids()), time.monotonic()
    figures, ids = stack.load(options.clients, options.seconds)
    cores, waiting = cpu.cores(), stack.counts()
    if keeping_busy is not None:
        stack.request("POST", f"/api/v1/tasks/{keeping_busy}/cancel")
    seconds = stack.drained() - began
    return {
        **figures,
        "cores": cores,
        "states_at_the_last_submission": dict(waiting),
        "drained_after_s": round(seconds, 2),
        "drained_per_s": round(len(ids) / seconds, 1),
        **readable(stack, ids),
    }


def readable(stack: ControlPlane, ids: Sequence[str]) -> dict[str, Any]:
    """Returns how many tasks were lost, and how long the others took from their acceptance."""
    wanted, tasks = set(ids), {each["task_id"]: each for each in stack.tasks()}
    lost = [each for each in ids if each not in tasks or tasks[each]["status"] != "DONE"]
    some = ids[:: max(1, len(ids) // _READ)]
    unread = [each for each in some if not _has_result(stack, each)]
    took = [_took(each) for name, each in tasks.items() if name in wanted and each["ended_at"]]
    return {
        "lost": len(lost),
        "results_read": len(some),
        "results_unreadable": len(unread),
        "accepted_to_done": percentiles(took),
        "runs": len({each["run_id"] for name, each in tasks.items() if name in wanted}),
    }


def _has_result(stack: ControlPlane, task_id: str) -> bool:
    status, body = stack.request("GET", f"/api/v1/results/{task_id}")
    return status == 200 and len(json.loads(body)["result"]["items"]) == 1


def _took(task: dict[str, Any]) -> float:
    submitted, ended = (datetime.fromisoformat(task[key]) for key in ("submitted_at", "ended_at"))
    return (ended - submitted).total_seconds()


def submit_many(stack: ControlPlane, count: int) -> list[str]:
    """Submits many small tasks, each with a row of its own, in large bodies."""
    return [
        task_id
        for numbers in batched(range(count), BODY_TASKS)
        for task_id in stack.submit(
            "---\n".join(echo(f"small-{each}", [f"row of task {each}"]) for each in numbers)
        )
    ]


def _inference(shards: int) -> str:
    items = json.dumps([f"What is {number} apples?" for number in range(_BUSY_ROWS)])
    return f"""\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: busy}}
spec:
  taskType: inference
  parallel: {{max_shards: {shards}}}
  model: {{source: {{type: builtin, identifier: tiny-chat}}, engine: transformers}}
  data: {{type: list, items: {items}}}
  inference: {{temperature: 0, max_tokens: 64}}
"""


def _running(stack: ControlPlane) -> int:
    return sum(each.status is WorkerStatus.RUNNING for each in stack.step_workers().values())


def _finished(stack: ControlPlane, task_id: str) -> int:
    return stack.get(f"/api/v1/tasks/{task_id}/progress")["rows_finished"] or 0
