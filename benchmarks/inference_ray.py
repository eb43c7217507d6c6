"""`mloc run` against Ray Data's LLM batch processor: whole commands over the same prompts.

Ray is no dependency: install `ray[data]` beside the environment and name its folder with
`--ray-path`. It has no CPU build of its own: its engine stage is given a processor core instead of
a GPU, and starts the vLLM that is installed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from fleet_stack import own_environment
from inference_cold import Command
from inference_model import build_model
from inference_options import Options
from inference_stack import write_template
from inference_warm import ENGINE
from inference_workloads import Workloads


def measure(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns whole seconds of both, and of the part of each in which rows are computed."""
    if not options.ray_path:
        return {"left_out": "no --ray-path"}
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    file = Workloads(options.prompts, folder, options.rows).questions()
    job = write_template(
        library, "ray", file, model, arguments=ENGINE, new_tokens=options.new_tokens
    )
    environment = {
        **own_environment(),
        "OMP_NUM_THREADS": str(options.threads),
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "PYTHONPATH": os.pathsep.join([options.ray_path, os.environ.get("PYTHONPATH", "")]),
    }
    ours = [sys.executable, "-m", "mloc_dagster.cli", "run", str(library / f"{job}.yaml"), "--json"]
    theirs = [sys.executable, __file__, str(model), str(file), str(options.new_tokens)]
    rounds = []
    for _ in range(options.rounds):
        ray = Command([*theirs, str(folder / "ray-out")], environment)
        mloc = Command(ours, environment)
        rounds.append(
            {
                "ray_s": round(ray.seconds, 2),
                "ray_mib": round(ray.peak_mib),
                "mloc_s": round(mloc.seconds, 2),
                "mloc_mib": round(mloc.peak_mib),
                "ray_said": json.loads(ray.output.splitlines()[-1]),
            }
        )
    whole = {k: statistics.median(each[k] for each in rounds) for k in ("ray_s", "mloc_s")}
    return {"rounds": rounds, "ratio_whole_command": round(whole["ray_s"] / whole["mloc_s"], 3)}


def _run_ray(model: str, prompts: str, new_tokens: int, target: str) -> None:
    import time

    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    # Logical cores: each of its stages holds one for itself.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=dict(ENGINE),
        placement_group_config={"bundle_per_worker": {"CPU": 1}},
        concurrency=1,
        batch_size=64,
        log_engine_metrics=False,  # vLLM 0.32's Ray metrics do not find this Ray
    )
    how = {"temperature": 0, "max_tokens": new_tokens, "ignore_eos": True}
    processor = build_processor(
        config,
        preprocess=lambda row: {
            "messages": [{"role": "user", "content": row["question"]}],
            "sampling_params": how,
        },
        postprocess=lambda row: {"output": row["generated_text"]},
    )
    begun = time.perf_counter()
    dataset = processor(ray.data.read_json(prompts)).materialize()
    seconds = time.perf_counter() - begun
    dataset.write_parquet(target)
    print(json.dumps({"processor_s": round(seconds, 2), "rows": dataset.count()}))


if __name__ == "__main__":
    _run_ray(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
