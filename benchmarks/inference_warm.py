"""mloc on a warm worker against bare `LLM.generate` over the same prompts, in turns."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from fleet_stack import FleetStack, own_environment
from inference_bare import BareEngine
from inference_model import build_model
from inference_options import Options
from inference_stack import Measured, run_job, write_template
from inference_workloads import Workloads

ENGINE = {"enforce_eager": True, "dtype": "float32", "max_model_len": 8192}


def measure_warm(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns throughput ratios to bare vLLM over the same prompts, both warm, in turns."""
    model = folder / "model"
    parameters = build_model(model, hidden=options.hidden, layers=options.layers)
    workloads = Workloads(options.prompts, folder, options.rows)
    files = {"questions": workloads.questions(), "eight_shot": workloads.eight_shot()}
    for name, file in files.items():
        for shards in (1, 4):
            write_template(
                library,
                f"{name}_{shards}",
                file,
                model,
                arguments=ENGINE,
                new_tokens=options.new_tokens,
                shards=shards,
            )
    figures: dict[str, Any] = {"parameters": parameters}
    environment = {**own_environment(), "OMP_NUM_THREADS": str(options.threads)}
    with (
        warm_stack(folder, library, options) as stack,
        BareEngine(model, environment, ENGINE) as bare,
    ):
        figures["bare_start"] = bare.started
        for name, file in files.items():
            figures[name] = in_turns(stack, folder, bare, name, file, options)
    return figures


def in_turns(
    stack: FleetStack, folder: Path, bare: BareEngine, name: str, file: Path, options: Options
) -> dict[str, Any]:
    """Measures the bare engine and the jobs `<name>_1` and `<name>_4`, each once a round."""
    bare.generate(file, options.new_tokens)
    run_job(stack, folder / "results", f"{name}_1")
    alone, one, four = [], [], []
    for _ in range(options.rounds):
        alone.append(bare.generate(file, options.new_tokens))
        one.append(run_job(stack, folder / "results", f"{name}_1"))
        four.append(run_job(stack, folder / "results", f"{name}_4"))
    plain = statistics.median(each["tokens"] / each["seconds"] for each in alone)
    return {
        "prompt_tokens": alone[0]["prompt_tokens"],
        "tokens": alone[0]["tokens"],
        "bare_tokens_per_s": round(plain, 1),
        "bare_s": [round(each["seconds"], 3) for each in alone],
        "one_shard": _against(plain, one),
        "four_shards": _against(plain, four),
    }


def _against(plain: float, runs: list[Measured]) -> dict[str, Any]:
    return {
        "shards_s": [round(each.shards_s, 3) for each in runs],
        "wall_s": [round(each.wall_s, 3) for each in runs],
        "hit_rate": round(statistics.median(each.hit_rate for each in runs), 3),
        "ratio_shards": round(
            statistics.median(each.tokens / each.shards_s for each in runs) / plain, 3
        ),
        "ratio_wall": round(
            statistics.median(each.tokens / each.wall_s for each in runs) / plain, 3
        ),
    }


def warm_stack(folder: Path, library: Path, options: Options, workers: int = 1) -> FleetStack:
    """Returns a stack, to be started, whose workers keep two models and compute with `threads`."""
    stack = FleetStack(folder, library, workers=workers)
    stack.environment |= {
        "OMP_NUM_THREADS": str(options.threads),
        "MLOC_MAX_CACHED_MODELS": "2",
    }
    return stack
