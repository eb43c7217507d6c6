"""What a training costs beyond TRL's own, side by side with bare scripts that call TRL.

    .venv/bin/python benchmarks/training.py PART --prompts gsm8k_test.jsonl

Parts: overhead, checkpoints, warm, ppo, or all. Each appends an entry to
benchmarks/results/training.json; with `--quick` it runs with tiny sizes and only prints.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

# Before torch is imported: small matrices are slower on two threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import training_overhead
import training_samples
import training_warm
from record import record
from training_options import Options, parse

PARTS = {
    "overhead": training_overhead.measure_overhead,
    "checkpoints": training_overhead.measure_checkpoints,
    "warm": training_warm.measure_warm,
    "ppo": training_samples.measure_samples,
}


def run_part(name: str, options: Options) -> dict[str, object]:
    """Measures one part in a temporary folder; returns its figures."""
    with tempfile.TemporaryDirectory(prefix=f"mloc-{name}-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # the embedded PostgreSQL runs as another user when this one is root
        library = folder / "templates"
        library.mkdir()
        return PARTS[name](options, folder, library)


def main() -> None:
    """Measures the parts that were asked for, one after the other, and records each."""
    parser = argparse.ArgumentParser(description="Measures trainings, in real processes.")
    parser.add_argument("part", choices=[*PARTS, "all"])
    arguments, options = parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.getLogger("dagster").setLevel(logging.ERROR)
    for name in PARTS if arguments.part == "all" else [arguments.part]:
        sizes = {**asdict(options), "prompts": options.prompts.name}
        figures = {"part": name, "options": sizes, **run_part(name, options)}
        if arguments.quick:
            print(json.dumps(figures, indent=2))
        else:
            record("training", figures)


if __name__ == "__main__":
    main()
