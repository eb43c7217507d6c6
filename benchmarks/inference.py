"""How fast inference is, side by side with the engine alone and with other ways to run it.

    .venv/bin/python benchmarks/inference.py PART --prompts gsm8k_test.jsonl

Parts: warm, cold, batch_runner, prefixes, duplicates, scaling, invariance, ray, gpu, or all. Each
appends an entry to benchmarks/results/inference.json; with `--quick` it runs with tiny sizes and
only prints.
"""

from __future__ import annotations

import inference_cold
import inference_gpu
import inference_invariance
import inference_ray
import inference_saved
import inference_scaling
import inference_warm
from inference_options import parse
from parts import run_parts

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

if __name__ == "__main__":
    run_parts("inference", "Measures inference, in real processes.", PARTS, parse)
