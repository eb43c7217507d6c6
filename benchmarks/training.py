"""What a training costs beyond TRL's own, side by side with bare scripts that call TRL.

    .venv/bin/python benchmarks/training.py PART --prompts gsm8k_test.jsonl

Parts: overhead, checkpoints, warm, ppo, or all. Each appends an entry to
benchmarks/results/training.json; with `--quick` it runs with tiny sizes and only prints.
"""

from __future__ import annotations

import os

# Before torch is imported: small matrices are slower on two threads than on one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import training_overhead
import training_samples
import training_warm
from parts import run_parts
from training_options import parse

PARTS = {
    "overhead": training_overhead.measure_overhead,
    "checkpoints": training_overhead.measure_checkpoints,
    "warm": training_warm.measure_warm,
    "ppo": training_samples.measure_samples,
}

if __name__ == "__main__":
    run_parts("training", "Measures trainings, in real processes.", PARTS, parse)
