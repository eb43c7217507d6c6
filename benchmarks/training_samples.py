"""Samples a second of PPO and of TRL's GRPO: as many answers, as long, of the same model.

With random weights an answer hardly ever ends by itself, so all are as long as they may be. PPO is
measured as it comes, with several passes over each batch, and with GRPO's one optimiser step.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from inference_model import build_model
from training_options import Options

ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1}


def measure_samples(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the samples a second of each, and the ratios to GRPO."""
    import torch
    import transformers
    from training_ppo import GENERATION, ROLLOUTS, train_grpo, train_ppo

    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = folder / "model"
    parameters = build_model(model, hidden=options.hidden, layers=options.layers)
    trainers: dict[str, Callable[..., dict[str, Any]]] = {
        "ppo": train_ppo,
        "ppo_one_optimiser_step": partial(train_ppo, **ONE_STEP),
        "grpo": train_grpo,
    }
    for train in trainers.values():  # imports, and what else is done but once
        _measured(train, model, 1)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trainers}
    for _ in range(options.rounds):
        for name, train in trainers.items():
            runs[name].append(_measured(train, model, options.updates))
    rates = {
        name: statistics.median(each["samples_per_s"] for each in done)
        for name, done in runs.items()
    }
    return {
        "parameters": parameters,
        "new_tokens": GENERATION["max_new_tokens"],
        "samples_per_update": ROLLOUTS,
        "runs": runs,
        "samples_per_s": rates,
        "ratio_to_grpo": {
            name: round(rate / rates["grpo"], 3) for name, rate in rates.items() if name != "grpo"
        },
    }


def _measured(train: Callable[..., dict[str, Any]], model: Path, updates: int) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        began = time.perf_counter()
        facts = train(loaded, tokenizer, 0, updates, Path(folder))
        seconds = time.perf_counter() - began
    return {
        **facts,
        "seconds": round(seconds, 2),
        "samples_per_s": round(facts["sampled"] / seconds, 1),
    }
