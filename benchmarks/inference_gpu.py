"""A model of realistic size on a GPU: mloc on a warm worker against the bare engine.

The engine is vLLM's CUDA build where it is installed, else transformers, for both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fleet_stack import own_environment
from inference_bare import BareEngine, EngineName
from inference_model import build_model
from inference_options import Options
from inference_stack import write_template
from inference_warm import in_turns, warm_stack
from inference_workloads import Workloads

from mloc_dagster.executors import vllm_build

HIDDEN, LAYERS, CONTEXT = 2048, 22, 4096  # about a billion parameters
ENGINE = {"max_model_len": CONTEXT, "gpu_memory_utilization": 0.4}
"""Both engines are loaded at a time."""


def measure_gpu(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns throughput ratios to the bare engine, both warm, in turns."""
    import torch

    if not torch.cuda.is_available():
        return {"left_out": "no GPU"}
    engine: EngineName = "vllm" if vllm_build() == "cuda" else "transformers"
    arguments = ENGINE if engine == "vllm" else {}
    model = folder / "model"
    parameters = build_model(model, hidden=HIDDEN, layers=LAYERS, context=CONTEXT, dtype="bfloat16")
    workloads = Workloads(options.prompts, folder, options.rows)
    files = {"questions": workloads.questions(), "eight_shot": workloads.eight_shot()}
    for name, file in files.items():
        for shards in (1, 4):
            write_template(
                library,
                f"{name}_{shards}",
                file,
                model,
                engine=engine,
                arguments=arguments,
                new_tokens=options.new_tokens,
                shards=shards,
                resources={"hardware": {"gpu": {"count": 1}}},
            )
    figures: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(0),
        "engine": engine,
        "parameters": parameters,
    }
    with (
        warm_stack(folder, library, options) as stack,
        BareEngine(model, own_environment(), arguments, engine) as bare,
    ):
        for name, file in files.items():
            figures[name] = in_turns(stack, folder, bare, name, file, options)
    return figures
