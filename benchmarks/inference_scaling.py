"""Rows a second of two workers against one, a thread each, and who has the processors meanwhile."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fleet_cpu import CpuWindow
from fleet_stack import FleetStack
from inference_model import build_model
from inference_options import Options
from inference_stack import run_job, write_template
from inference_warm import ENGINE, warm_stack
from inference_workloads import Workloads

ENGINES = ("vllm", "transformers")
SHARDS = 8


def measure_scaling(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns, for both engines, seconds with one and two workers, and CPU by process group."""
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    file = Workloads(options.prompts, folder, options.rows).questions()
    for engine in ENGINES:
        write_template(
            library,
            f"scale_{engine}",
            file,
            model,
            engine=engine,
            arguments={**ENGINE, "enable_prefix_caching": False},
            new_tokens=options.new_tokens,
            shards=SHARDS,
        )
    measured: dict[str, dict[int, dict[str, Any]]] = {engine: {} for engine in ENGINES}
    for workers in (1, 2):
        place = folder / f"workers-{workers}"
        place.mkdir()
        with warm_stack(place, library, options, workers=workers) as stack:
            for engine in ENGINES:
                measured[engine][workers] = _rounds(stack, place / "results", engine, options)
    return {
        engine: {
            **{f"workers_{workers}": figures for workers, figures in of.items()},
            "speedup": round(_median(of[1]) / _median(of[2]), 2),
        }
        for engine, of in measured.items()
    }


def _rounds(stack: FleetStack, results: Path, engine: str, options: Options) -> dict[str, Any]:
    run_job(stack, results, f"scale_{engine}")  # both workers have loaded it after this
    window = CpuWindow(stack.process_groups())
    runs = [run_job(stack, results, f"scale_{engine}") for _ in range(options.rounds)]
    return {
        "shards_s": [round(each.shards_s, 2) for each in runs],
        "cores_used": window.cores(),
    }


def _median(figures: dict[str, Any]) -> float:
    return statistics.median(figures["shards_s"])
