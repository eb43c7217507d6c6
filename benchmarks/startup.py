"""How long `mloc --help` and `mloc validate` take, as ratios to `python -c pass`.

    .venv/bin/python benchmarks/startup.py

Appends its result to benchmarks/results/startup.json.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from record import record

ROOT = Path(__file__).parents[1]
RUNS = 15
MLOC = [sys.executable, "-m", "mloc_dagster.cli"]
COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "mloc --help": [*MLOC, "--help"],
    "mloc validate": [*MLOC, "validate", "templates/core/echo.yaml"],
}


def seconds(command: list[str]) -> float:
    """Returns the wall time of one run."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure() -> dict[str, float]:
    """Returns the median of each command; they take turns, so that a busy moment hits all."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for command in COMMANDS.values():
        seconds(command)  # writes bytecode, fills the page cache
    for _ in range(RUNS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    """Measures and records."""
    medians = measure()
    base = medians["python -c pass"]
    record(
        "startup",
        {
            "runs": RUNS,
            "median_s": {name: round(each, 4) for name, each in medians.items()},
            "ratio": {name: round(each / base, 2) for name, each in medians.items()},
        },
    )


if __name__ == "__main__":
    main()
