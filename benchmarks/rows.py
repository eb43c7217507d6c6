"""Time per row and peak memory of large echo tasks, through `mloc run` in a process of its own.

    python benchmarks/rows.py [--small 100000] [--large 1000000] [--shards 16]

Prints both figures and their ratio, and adds them to `benchmarks/results/rows.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from record import record

TEMPLATE = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: rows}}
spec:
  taskType: echo
  parallel: {{max_shards: {shards}}}
  data: {{type: dataset, url: {data}, column: text}}
"""


def measure(rows: int, shards: int, folder: Path) -> dict[str, float]:
    """Runs one task; returns its seconds, seconds of CPU, and the peak MiB of any process."""
    data = folder / f"{rows}.jsonl"
    with data.open("w") as file:
        for index in range(rows):
            file.write(json.dumps({"text": f"row {index}: how many apples are left?"}) + "\n")
    template = folder / f"{rows}.yaml"
    template.write_text(TEMPLATE.format(shards=shards, data=data))
    environment = {
        **os.environ,
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
    }
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
    started = time.monotonic()
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE)
    peak = watch(process)
    output = process.stdout.read()
    seconds = time.monotonic() - started
    outcome = json.loads(output)
    if not outcome["ok"] or outcome["tasks"][0]["rows"] != rows:
        raise SystemExit(f"the run failed: {outcome}")
    return {"rows": rows, "seconds": seconds, "peak_mib": peak / 2**20}


def watch(process: psutil.Popen) -> int:
    """Waits for the process; returns the largest resident size that it or a child had."""
    peak = 0
    while process.poll() is None:
        for each in [process, *children(process)]:
            try:
                peak = max(peak, each.memory_info().rss)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    return peak


def children(process: psutil.Popen) -> list[psutil.Process]:
    """Returns the living children."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def main() -> None:
    """Measures small and large tasks in turn, so that drift of the machine hits both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        folder = Path(name)
        warm = measure(100, options.shards, folder)
        runs = [measure(rows, options.shards, folder) for rows in (options.small, options.large)]
    per_row = [each["seconds"] / each["rows"] for each in runs]
    # A run of 100 rows is all start and no rows: without it the shares that grow are compared.
    net = [(each["seconds"] - warm["seconds"]) / each["rows"] for each in runs]
    record(
        "rows",
        {
            "shards": options.shards,
            "start_s": warm["seconds"],
            "runs": runs,
            "us_per_row": [value * 1e6 for value in per_row],
            "us_per_row_without_start": [value * 1e6 for value in net],
            "ratio_per_row": per_row[1] / per_row[0],
            "ratio_per_row_without_start": net[1] / net[0],
        },
    )


if __name__ == "__main__":
    main()
