"""The trainings that are compared: the same model, rows and arguments, for mloc and for TRL."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from fleet_stack import own_environment
from inference_model import build_model
from training_options import Options

BATCHES = {"sft": 2, "lora_sft": 2, "dpo": 1, "reward": 1, "grpo": 8}
"""Rows a step: about a third of a second each on a core of 2026, so that loops are short."""

COMMON = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "seed": 3,
    "logging_steps": 1,
}
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "bias": "none"}
ROLLOUTS = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 1.0, "top_k": 0}

# What mloc says to TRL when a template says nothing: one epoch, no gradient checkpointing (TRL's
# own default costs a fifth of the speed), float32 on a CPU, and an order of rows that is seeded.
_ON_CPU = {
    "num_train_epochs": 1,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "disable_tqdm": True,
    "data_seed": COMMON["seed"],
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One training, as a whole command.

    Attributes:
        wall_s: Of the command.
        cpu_s: Processor time of all of its processes.
        loop_s: Of the training loop, by the trainer's own clock (`train_runtime`).
        history: What was logged at each step.
        facts: What else is known of it.
    """

    wall_s: float
    cpu_s: float
    loop_s: float
    history: Sequence[Mapping[str, float]]
    facts: Mapping[str, Any]


class Trainings:
    """Runs trainings in a folder, with mloc and without.

    Args:
        options: Sizes.
        folder: Keeps model, rows, home and results.
        library: Keeps the templates.
    """

    def __init__(self, options: Options, folder: Path, library: Path) -> None:
        self._folder = folder
        self._library = library
        self.model = folder / "model"
        self.parameters = build_model(self.model, hidden=options.hidden, layers=options.layers)
        with options.prompts.open(encoding="utf-8") as lines:
            known = [json.loads(line) for line in islice(lines, 1000)]
        self._rows = {name: self._write(name, known) for name in ("answers", "pairs", "prompts")}
        self.environment = {
            **own_environment(),
            "OMP_NUM_THREADS": str(options.threads),
            "MLOC_HOME": str(folder / "home"),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "HF_HUB_OFFLINE": "1",  # nobody here waits for a network
        }

    def write_template(self, name: str, method: str, training: Mapping[str, Any]) -> Path:
        """Writes the template of a training; returns its path."""
        spec: dict[str, Any] = {
            "taskType": method,
            "enforce_cpu": True,
            "model": {"source": {"type": "local", "identifier": str(self.model)}},
            "data": {"dataset_name": str(self.rows_of(method))},
            "training": self._arguments(method, training),
        }
        if method == "lora_sft":
            spec["lora"] = LORA
        if method == "grpo":
            spec["generation"] = ROLLOUTS
            spec["rewards"] = [{"name": "length", "options": {"least": 20}}]
        document = {
            "apiVersion": "mloc/v1",
            "kind": "TrainingTask",
            "metadata": {"name": name},
            "spec": spec,
        }
        path = self._library / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def run_mloc(self, method: str, **training: Any) -> Measured:
        """Trains with `mloc run`."""
        template = self.write_template("training", method, training)
        command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
        output, wall_s, cpu_s = _run(command, self.environment)
        (task,) = json.loads(output)["tasks"]
        summary = json.loads((Path(task["folder"]) / "training.json").read_text())
        loop_s = summary["metrics"]["train_runtime"]
        history = [each for each in summary["history"] if "loss" in each]
        parts = {
            "loop": round(loop_s, 2),
            "the training's process, without its loop": round(summary["seconds"] - loop_s, 2),
            "command, Dagster, planning, files": round(wall_s - summary["seconds"], 2),
        }
        return Measured(wall_s, cpu_s, loop_s, history, {"parts_s": parts})

    def run_bare(self, method: str, **training: Any) -> Measured:
        """Trains with a script that has nothing but TRL."""
        arguments = {
            **_ON_CPU,
            **self._arguments(method, training),
            "output_dir": str(self._folder / "bare"),
        }
        if method == "grpo":
            limit = ROLLOUTS["max_new_tokens"]
            sampling = {key: each for key, each in ROLLOUTS.items() if key != "max_new_tokens"}
            arguments |= {"max_completion_length": limit, **sampling}
        rows = str(self.rows_of(method))
        job = {"method": method, "model": str(self.model), "rows": rows, "arguments": arguments}
        if method == "lora_sft":
            job["lora"] = LORA
        path = self._folder / "bare.json"
        path.write_text(json.dumps(job))
        script = str(Path(__file__).parent / "training_bare.py")
        output, wall_s, cpu_s = _run([sys.executable, script, str(path)], self.environment)
        said = json.loads(output.splitlines()[-1])
        return Measured(wall_s, cpu_s, said.pop("loop_s"), said.pop("history"), said)

    def rows_of(self, method: str) -> Path:
        """Returns the file of a method's rows."""
        forms = {"sft": "answers", "lora_sft": "answers", "grpo": "prompts"}
        return self._rows[forms.get(method, "pairs")]

    def _arguments(self, method: str, training: Mapping[str, Any]) -> dict[str, Any]:
        rollouts = {"num_generations": 4} if method == "grpo" else {}
        batch = {"per_device_train_batch_size": BATCHES[method]}
        return {**COMMON, **batch, **rollouts, **training}

    def _write(self, form: str, known: Sequence[Mapping[str, str]]) -> Path:
        others = [*known[1:], known[0]]
        path = self._folder / f"{form}.jsonl"
        with path.open("w") as file:
            for own, other in zip(known, others, strict=True):
                row = {"prompt": own["question"]}
                if form == "answers":
                    row["completion"] = own["answer"]
                if form == "pairs":  # worse than the right answer is that to another question
                    row |= {"chosen": own["answer"], "rejected": other["answer"]}
                file.write(json.dumps(row) + "\n")
        return path


def _run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, float, float]:
    """Returns what a command printed, and its wall and processor seconds."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    wall_s = time.perf_counter() - began
    if done.returncode:
        said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        raise SystemExit(f"{command} ended with {done.returncode}: {said}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, wall_s, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
