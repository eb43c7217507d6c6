"""Tokens a second and peak memory on a GPU: `mloc run` side by side with a bare TRL script.

    .venv/bin/python benchmarks/training_gpu.py all --prompts gsm8k_test.jsonl

Parts: full (all weights) and lora, of a Llama of 0.8 billion random weights, in bfloat16. Each
appends an entry to benchmarks/results/training_gpu.json. With `--tiny` a small model is trained
for a few steps on whatever there is, a CPU too, and the figures are only printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from fleet_stack import own_environment
from inference_model import build_model
from parts import run_parts
from peak_memory import PeakMemory

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none"}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes of both parts.

    Attributes:
        prompts: JSON lines with the columns `question` and `answer`.
        steps: Optimiser steps of each training.
        rounds: How often each side trains, in turns; medians are reported.
        batch: Rows a step.
        max_length: Tokens of a row at most; longer ones are cut.
        hidden: Width of the model.
        layers: Its depth.
        tiny: Whether it is only tried out.
    """

    prompts: Path
    steps: int
    rounds: int
    batch: int
    max_length: int
    hidden: int
    layers: int
    tiny: bool


SIZES = {"steps": 50, "rounds": 3, "batch": 8, "max_length": 1024, "hidden": 2048, "layers": 16}
TINY = {"steps": 3, "rounds": 1, "batch": 2, "max_length": 64, "hidden": 64, "layers": 2}


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, Options]:
    """Adds a flag for each size and reads the command line."""
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument(
        "--tiny", dest="quick", action="store_true", help="a small model, also on a CPU; unrecorded"
    )
    for name, default in SIZES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    given = parser.parse_args()
    sizes = {name: getattr(given, name) for name in SIZES} | (TINY if given.quick else {})
    return given, Options(prompts=given.prompts.resolve(), tiny=given.quick, **sizes)


class Sides:
    """Trains the same model on the same rows in the same way, with mloc and with TRL alone.

    Args:
        method: A task type, `sft` or `lora_sft`.
        options: Sizes.
        folder: Keeps model, rows, home and results.
        library: Keeps the template.
    """

    def __init__(self, method: str, options: Options, folder: Path, library: Path) -> None:
        import torch

        self.gpu = torch.cuda.is_available()
        if not self.gpu and not options.tiny:
            raise SystemExit("there is no GPU here; --tiny tries the script out on a CPU")
        self.device = torch.cuda.get_device_name(0) if self.gpu else "cpu"
        self._method, self._options = method, options
        self._folder, self._library = folder, library
        self.parameters = build_model(
            folder / "model",
            hidden=options.hidden,
            layers=options.layers,
            dtype="bfloat16" if self.gpu else "float32",
        )
        self._rows = folder / "rows.jsonl"
        with options.prompts.open(encoding="utf-8") as lines, self._rows.open("w") as file:
            for known in map(json.loads, islice(lines, 5000)):
                row = {"prompt": known["question"], "completion": known["answer"]}
                file.write(json.dumps(row) + "\n")
        self._environment = {
            **own_environment(),
            "MLOC_HOME": str(folder / "home"),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "HF_HUB_OFFLINE": "1",  # nobody here waits for a network
        }

    def run_mloc(self) -> dict[str, Any]:
        """Trains with `mloc run`."""
        spec: dict[str, Any] = {
            "taskType": self._method,
            "enforce_cpu": not self.gpu,
            "model": {"source": {"type": "local", "identifier": str(self._folder / "model")}},
            "data": {"dataset_name": str(self._rows)},
            "training": self._arguments(),
            "resources": {"hardware": {"gpu": {"count": int(self.gpu)}}},
        }
        if self._method == "lora_sft":
            spec["lora"] = {**LORA, "target_modules": TARGETS}
        head = {"apiVersion": "mloc/v1", "kind": "TrainingTask", "metadata": {"name": "training"}}
        template = self._library / "training.yaml"
        template.write_text(yaml.safe_dump({**head, "spec": spec}, sort_keys=False))
        command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
        output, facts = self._measured(command)
        (task,) = json.loads(output)["tasks"]
        summary = json.loads((Path(task["folder"]) / "training.json").read_text())
        history = [each for each in summary["history"] if "loss" in each]
        return {**facts, **_rates(history, summary["metrics"]["train_runtime"])}

    def run_bare(self) -> dict[str, Any]:
        """Trains with a script that has nothing but TRL."""
        adapted = self._method == "lora_sft"
        # mloc keeps weights that are trained in float32, and frozen ones as their files are.
        held = "bfloat16" if adapted and self.gpu else "float32"
        arguments = {
            **self._arguments(),
            "num_train_epochs": 1,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"dtype": held},
            "bf16": self.gpu,
            "use_cpu": not self.gpu,
            "dataloader_pin_memory": self.gpu,
            "data_seed": self._arguments()["seed"],
            "report_to": "none",
            "disable_tqdm": True,
            "output_dir": str(self._folder / "bare"),
        }
        job: dict[str, Any] = {
            "method": self._method,
            "model": str(self._folder / "model"),
            "rows": str(self._rows),
            "arguments": arguments,
        }
        if adapted:
            job["lora"] = {**LORA, "target_modules": TARGETS}
        path = self._folder / "bare.json"
        path.write_text(json.dumps(job))
        script = str(Path(__file__).parent / "training_bare.py")
        output, facts = self._measured([sys.executable, script, str(path)])
        said = json.loads(output.splitlines()[-1])
        return {**facts, **_rates(said["history"], said["loop_s"])}

    def _arguments(self) -> dict[str, Any]:
        return {
            "max_steps": self._options.steps,
            "per_device_train_batch_size": self._options.batch,
            "max_length": self._options.max_length,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant",
            "seed": 3,
            "logging_steps": 1,
            "save_strategy": "no",
        }

    def _measured(self, command: Sequence[str]) -> tuple[str, dict[str, Any]]:
        began = time.perf_counter()
        with PeakMemory(gpu=self.gpu) as memory:
            done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            raise SystemExit(f"{command} ended with {done.returncode}: {said}")
        wall_s = round(time.perf_counter() - began, 2)
        return done.stdout, {"wall_s": wall_s, "peak_gib": round(memory.peak / 2**30, 3)}


def measure(method: str, options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns what both sides did, in turns, and mloc's figures in shares of the bare script's."""
    sides = Sides(method, options, folder, library)
    runs: dict[str, list[dict[str, Any]]] = {"bare": [], "mloc": []}
    turns: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("bare", sides.run_bare),
        ("mloc", sides.run_mloc),
    ]
    for number in range(options.rounds):
        for name, run in reversed(turns) if number % 2 else turns:
            runs[name].append(run())
    losses = [runs[name][0].pop("losses") for name in runs]
    for each in [*runs["bare"], *runs["mloc"]]:
        each.pop("losses", None)
    return {
        "device": sides.device,
        "parameters": sides.parameters,
        **runs,
        "ratio_tokens_per_s": _ratio(runs, "tokens_per_s"),
        "ratio_peak": _ratio(runs, "peak_gib"),
        "largest_difference_of_losses": max(
            abs(one - other) for one, other in zip(*losses, strict=True)
        ),
    }


def _rates(history: Sequence[Mapping[str, float]], loop_s: float) -> dict[str, Any]:
    tokens = history[-1]["num_tokens"]
    return {
        "loop_s": round(loop_s, 2),
        "tokens": tokens,
        "tokens_per_s": round(tokens / loop_s, 1),
        "losses": [each["loss"] for each in history],
    }


def _ratio(runs: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> float:
    bare, mloc = (statistics.median(each[name] for each in runs[side]) for side in ("bare", "mloc"))
    return round(mloc / bare, 3)


def measure_full(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Trains all weights."""
    return measure("sft", options, folder, library)


def measure_lora(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Trains an adapter."""
    return measure("lora_sft", options, folder, library)


PARTS = {"full": measure_full, "lora": measure_lora}

if __name__ == "__main__":
    run_parts("training_gpu", "Measures trainings on a GPU.", PARTS, parse)
