"""What the fleet costs and how it grows: real processes on PostgreSQL, in temporary homes.

    .venv/bin/python benchmarks/fleet.py throughput|overhead|warm|control_plane|scaling|events|all

Each part appends an entry to benchmarks/results/fleet.json. With `--quick` it runs with tiny sizes
and only prints: that says whether everything works, and nothing about speed.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import fleet_control_plane
import fleet_events
import fleet_overhead
import fleet_scaling
import fleet_throughput
import fleet_warm
from fleet_options import Options, add_options, chosen
from record import record

PARTS = {
    "overhead": fleet_overhead.measure,
    "throughput": fleet_throughput.measure,
    "warm": fleet_warm.measure,
    "control_plane": fleet_control_plane.measure,
    "scaling": fleet_scaling.measure,
    "events": fleet_events.measure,
}


def run_part(name: str, options: Options) -> dict[str, object]:
    """Measures one part in a temporary folder; returns its figures."""
    with tempfile.TemporaryDirectory(prefix=f"mloc-{name}-") as temporary:
        folder = Path(temporary)
        # The embedded PostgreSQL runs as another user when this process is root.
        folder.chmod(0o755)
        library = folder / "templates"
        library.mkdir()
        return PARTS[name](options, folder, library)


def main() -> None:
    """Measures the parts that were asked for, one after the other, and records each."""
    parser = argparse.ArgumentParser(description="Measures the fleet, in real processes.")
    parser.add_argument("part", choices=[*PARTS, "all"])
    add_options(parser)
    arguments = parser.parse_args()
    options = chosen(arguments)
    # Asked to stop, it stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.getLogger("dagster").setLevel(logging.ERROR)
    for name in PARTS if arguments.part == "all" else [arguments.part]:
        figures = {"part": name, "options": asdict(options), **run_part(name, options)}
        if arguments.quick:
            print(json.dumps(figures, indent=2))
        else:
            record("fleet", figures)


if __name__ == "__main__":
    main()
