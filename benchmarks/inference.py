"""How fast inference is, side by side with the engine alone and with other ways to run it.

    .venv/bin/python benchmarks/inference.py PART --prompts gsm8k_test.jsonl

Parts: warm, cold, batch_runner, prefixes, duplicates, scaling, invariance, ray, gpu, or all. Each
appends an entry to benchmarks/results/inference.json; with `--quick` it runs with tiny sizes and
only prints.
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

import inference_cold
import inference_gpu
import inference_invariance
import inference_ray
import inference_saved
import inference_scaling
import inference_warm
from inference_options import Options, parse
from record import record

PARTS = {
    "warm": inference_warm.measure_warm,
    "cold": inference_cold.measure_cold,
    "batch_runner": inference_cold.measure_batch_runner,
    "prefixes": inference_saved.measure_prefixes,
    "duplicates": inference_saved.measure_duplicates,
    "scaling": inference_scaling.measure_scaling,
    "invariance": inference_invariance.measure_invariance,
    "ray": inference_ray.measure,
    "gpu": inference_gpu.measure_gpu,
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
    parser = argparse.ArgumentParser(description="Measures inference, in real processes.")
    parser.add_argument("part", choices=[*PARTS, "all"])
    arguments, options = parse(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logging.getLogger("dagster").setLevel(logging.ERROR)
    for name in PARTS if arguments.part == "all" else [arguments.part]:
        sizes = {**asdict(options), "prompts": options.prompts.name, "ray_path": ""}
        figures = {"part": name, "options": sizes, **run_part(name, options)}
        if arguments.quick:
            print(json.dumps(figures, indent=2))
        else:
            record("inference", figures)


if __name__ == "__main__":
    main()
