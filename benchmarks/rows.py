"""Time per row and peak memory of large echo tasks, through `mloc run` in a process of its own.

    python benchmarks/rows.py [--small 100000] [--large 1000000] [--shards 16]
    python benchmarks/rows.py --columns 10

Prints both figures and their ratio, and adds them to `benchmarks/results/rows.json`. With
`--columns` the large task only, whose rows have so many columns more: with `keep: all` against
`keep: false`, in turns; in `benchmarks/results/row_columns.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
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
  data: {{type: dataset, url: {data}, column: text, keep: {keep}}}
"""


def measure(
    rows: int, shards: int, folder: Path, *, columns: int = 0, keep: str = "all"
) -> dict[str, float]:
    """Runs one task; returns its seconds, and the peak MiB of any process."""
    data = folder / f"{rows}.jsonl"
    if not data.exists():
        with data.open("w") as file:
            for index in range(rows):
                row = {"text": f"row {index}: how many apples are left?"}
                file.write(json.dumps(row | _columns(index, columns)) + "\n")
    template = folder / f"{rows}.yaml"
    template.write_text(TEMPLATE.format(shards=shards, data=data, keep=keep))
    environment = {
        **os.environ,
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
    }
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
    started, busy_s = time.monotonic(), cpu_seconds()
    process = psutil.Popen(command, env=environment, stdout=subprocess.PIPE)
    peak = watch(process)
    output = process.stdout.read()
    seconds = time.monotonic() - started
    outcome = json.loads(output)
    if not outcome["ok"] or outcome["tasks"][0]["rows"] != rows:
        raise SystemExit(f"the run failed: {outcome}")
    cpu_s = cpu_seconds() - busy_s
    return {"rows": rows, "seconds": seconds, "cpu_s": cpu_s, "peak_mib": peak / 2**20}


def cpu_seconds() -> float:
    """Returns the CPU time of all runs so far, which other work on the machine changes little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _columns(index: int, count: int) -> dict[str, object]:
    """Returns columns of a row: text, whole numbers and fractions in turn."""
    values = (f"answer {index % 100}", index, index / 7)
    return {f"column_{each}": values[each % 3] for each in range(count)}


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


def measure_columns(rows: int, shards: int, columns: int, folder: Path) -> None:
    """Measures a task that carries columns against one that does not, three times each."""
    measure(100, shards, folder, columns=columns)  # fills the page cache
    runs: dict[str, list[dict[str, float]]] = {"all": [], "false": []}
    for keep in ("false", "all") * 3:
        runs[keep].append(measure(rows, shards, folder, columns=columns, keep=keep))
    medians, cpu_s = (
        {keep: statistics.median(each[name] for each in some) for keep, some in runs.items()}
        for name in ("seconds", "cpu_s")
    )
    record(
        "row_columns",
        {
            "rows": rows,
            "columns": columns,
            "shards": shards,
            "runs": runs,
            "seconds": medians,
            "ratio": medians["all"] / medians["false"],
            "cpu_s": cpu_s,
            "cpu_ratio": cpu_s["all"] / cpu_s["false"],
        },
    )


def main() -> None:
    """Measures small and large tasks in turn, so that drift of the machine hits both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--columns", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        folder = Path(name)
        if options.columns:
            measure_columns(options.large, options.shards, options.columns, folder)
            return
        measure(100, options.shards, folder)  # fills the page cache
        runs: dict[int, list[dict[str, float]]] = {}
        for rows in (100, options.small, options.large, 100, options.small, 100, options.small):
            runs.setdefault(rows, []).append(measure(rows, options.shards, folder))
    start, small, large = (
        statistics.median(each["seconds"] for each in measured) for measured in runs.values()
    )
    # A run of 100 rows is all start and no rows: without it, what is left is the rows' own time.
    net = (small - start) / options.small, (large - start) / options.large
    record(
        "rows",
        {
            "shards": options.shards,
            "start_s": start,
            "runs": [each for measured in runs.values() for each in measured],
            "us_per_row": [small / options.small * 1e6, large / options.large * 1e6],
            "ratio_per_row": (large / options.large) / (small / options.small),
            "us_per_row_without_start": [value * 1e6 for value in net],
            "ratio_per_row_without_start": net[1] / net[0],
            "peak_mib": max(each["peak_mib"] for all_ in runs.values() for each in all_),
        },
    )


if __name__ == "__main__":
    main()
