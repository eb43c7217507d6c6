"""What `mloc up` costs, and how soon a click on Launch leads to a row.

    python benchmarks/idle_stack.py [--rounds 3] [--launches 20]

Starts the whole stack in a new home: one worker, one run worker, the API. A launch is what the UI's
button sends, of a template of one row that a warm tiny-chat answers; launches are a few odd tenths
of a second apart, so that they meet every moment of whatever looks once a second.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from fleet_stack import FleetStack, until
from fleet_templates import write_chat
from record import record

from mloc_dagster.events import (
    BEGINNING,
    Channel,
    TaskEvent,
    TaskEventType,
    open_redis,
    read_events,
)
from mloc_dagster.services import stack_processes

_LAUNCH = """
mutation Launch($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
  }
}
"""
_LIMIT = 100_000
_IDLE_S = 20.0


def main() -> None:
    """Measures, and records the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--launches", type=int, default=20)
    parser.add_argument("--label", default="")
    options = parser.parse_args()
    rounds = [_round(options.launches) for _ in range(options.rounds)]
    names = [name for name, figure in rounds[0].items() if isinstance(figure, int | float)]
    medians = {name: _rounded(statistics.median(each[name] for each in rounds)) for name in names}
    record("idle_stack", {"options": vars(options), "median": medians, "rounds": rounds})


def _round(launches: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        folder = Path(name)
        (folder / "library").mkdir()
        job = write_chat(folder / "library")
        began = time.perf_counter()
        with FleetStack(folder, folder / "library", workers=1, api=True) as stack:
            found = {"start_s": time.perf_counter() - began, **_costs(stack)}
            rows = [_first_row_s(stack, job) for _ in range(launches + 1)][1:]
            began = time.perf_counter()
            stack.down()
            found["stop_s"] = time.perf_counter() - began
        found["first_row_p50_s"] = statistics.median(rows)
        found["first_row_worst_s"] = max(rows)
        return {name: _rounded(each) for name, each in found.items()}


def _costs(stack: FleetStack) -> dict[str, float]:
    processes = stack_processes(stack.layout)
    before = _cpu_s(processes)
    time.sleep(_IDLE_S)
    return {
        "start_cpu_s": before,
        "processes": len(processes),
        "pss_mib": sum(map(_pss_kib, processes)) / 1024,
        "idle_cores": (_cpu_s(processes) - before) / _IDLE_S,
    }


def _cpu_s(processes: list[psutil.Process]) -> float:
    times = [each.cpu_times() for each in processes if each.is_running()]
    return sum(each.user + each.system for each in times)


def _pss_kib(process: psutil.Process) -> int:
    try:
        text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it has ended
        return 0
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else 0


def _first_row_s(stack: FleetStack, job: str) -> float:
    time.sleep(random.uniform(0.5, 1.5))
    selector = {
        "pipelineName": job,
        "repositoryName": "__repository__",
        "repositoryLocationName": "mloc_dagster.definitions",
    }
    asked = {"query": _LAUNCH, "variables": {"selector": selector}}
    url = f"{stack.plan.webserver_url}/graphql"
    launched_at = time.time()
    answer = httpx.post(url, json=asked, timeout=60, trust_env=False).json()
    run_id = answer["data"]["launchRun"]["run"]["runId"]
    row_at = until(lambda: _row_at(stack, run_id), "the first row")
    return row_at - launched_at


def _row_at(stack: FleetStack, run_id: str) -> float | None:
    with open_redis(stack.plan.redis_url) as client:
        for each in read_events(client, {Channel.TASKS: BEGINNING}, limit=_LIMIT):
            event = each.event
            mine = isinstance(event, TaskEvent) and event.run_id == run_id
            if mine and event.type is TaskEventType.TASK_PROGRESS:
                return event.ts.timestamp()
    return None


def _rounded(number: float) -> float:
    return round(number, 3)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    main()
