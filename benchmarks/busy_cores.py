"""What a training takes beside processes that keep every core busy, as ratios to plain PyTorch.

    .venv/bin/python benchmarks/busy_cores.py

`mloc run` has OpenMP threads sleep while they wait (`mloc_dagster/cli/terminal.py`);
`GOMP_SPINCOUNT=300000` is what GNU's OpenMP does by itself where a thread has a core of its own.
Appends its result to benchmarks/results/busy_cores.json.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from record import record

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "mloc_dagster.cli", "run", "templates/core/align_tiny.yaml"]
WAYS = {"mloc": {}, "openmp": {"GOMP_SPINCOUNT": "300000"}}
ROUNDS = 1


def seconds(chosen: dict[str, str]) -> float:
    """Returns the wall time of one run in a home of its own."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
    environment = {key: text for key, text in os.environ.items() if key not in ours} | chosen
    with tempfile.TemporaryDirectory(prefix="mloc-") as home:
        environment |= {"MLOC_HOME": home, "MLOC_RESULTS_URL": f"{home}/results"}
        started = time.perf_counter()
        subprocess.run(COMMAND, cwd=ROOT, env=environment, check=True, capture_output=True)
        return time.perf_counter() - started


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keeps each core busy with a process that computes."""
    count = os.cpu_count() or 1
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def measure() -> dict[str, float]:
    """Returns the mean of each way; they take turns, so that another's work hits both."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way, chosen in WAYS.items():
            times[way].append(seconds(chosen))
    return {way: round(sum(each) / ROUNDS, 1) for way, each in times.items()}


def main() -> None:
    """Measures and records."""
    quiet = measure()
    with busy_cores():
        busy = measure()
    record(
        "busy_cores",
        {
            "rounds": ROUNDS,
            "quiet_s": quiet,
            "busy_s": busy,
            "quiet_ratio": round(quiet["mloc"] / quiet["openmp"], 2),
            "busy_ratio": round(busy["mloc"] / busy["openmp"], 2),
        },
    )


if __name__ == "__main__":
    main()
