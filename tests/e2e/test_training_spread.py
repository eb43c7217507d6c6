"""Two processes that train with FSDP, neither of which has the whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("trl")

from mloc_dagster.executors import TrainingJob, evaluate, rendered_rows
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import TrainingSpec, find_task_type
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = [{"prompt": f"What is {n} + 1?", "completion": f"{n + 1}!"} for n in range(24)]
MODEL = {"source": {"type": "builtin", "identifier": "tiny-chat"}}


@dataclass(frozen=True)
class Heard:
    """What a process of a training said: kinds and contents, in order."""

    said: Sequence[tuple[str, Any]]

    def measured(self, when: str) -> Mapping[str, float]:
        (found,) = [it for kind, it in self.said if kind == "Evaluated" and it["when"] == when]
        return found["metrics"]

    def logged(self, name: str) -> dict[int, float]:
        told = [it for kind, it in self.said if kind == "Progress"]
        return {step: metrics[name] for step, _, metrics in told if name in metrics}


def job_of(folder: Path, task_type: str, **training: Any) -> TrainingJob:
    (folder / "checkpoints").mkdir(parents=True)
    rows = folder / "train.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    spec = find_task_type(task_type).spec.model_validate(
        {
            "taskType": task_type,
            "model": MODEL,
            "data": {"rows": ROWS},
            "training": {
                "max_steps": 6,
                "per_device_train_batch_size": 4,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "save_steps": 3,
                "fsdp": True,
                **training,
            },
            "evaluation": {
                "data": {"rows": ROWS[:5]},
                "metrics": ["loss", "exact_match"],
                "max_new_tokens": 8,
                "every": 2,
            },
        }
    )
    assert isinstance(spec, TrainingSpec)
    return TrainingJob(task_id="spread", spec=spec, folder=folder, rows=rows, eval_rows=rows)  # type: ignore[arg-type]


def train(job: TrainingJob) -> list[Heard]:
    """Trains in two processes; returns what each said."""
    path, said = job.write(), [job.folder / f"said-{rank}.jsonl" for rank in range(2)]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    address = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "CUDA_VISIBLE_DEVICES": "",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fsdp_process", str(path), str(said[rank])],
            env={**os.environ, **together, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ends = [each.communicate(timeout=600) for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    for process, (_, printed) in zip(processes, ends, strict=True):
        assert process.returncode == 0, printed[-3000:]
    return [
        Heard([tuple(json.loads(line)) for line in each.read_text().splitlines()]) for each in said
    ]


def measured_alone(model: Any, job: TrainingJob) -> dict[str, float]:
    """Returns what the weights on disk are worth, in one process."""
    from transformers import AutoTokenizer

    spec = job.spec
    tokenizer = AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))
    assert spec.evaluation is not None
    rows = rendered_rows(ROWS, spec.evaluation.data, spec.method, tokenizer)
    return evaluate(model, tokenizer, rows, spec.evaluation, log=lambda _: None)


def test_all_measure_and_the_first_saves_the_whole_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    job = job_of(tmp_path / "sft", "sft")
    first, second = train(job)
    before, after = first.measured("before"), first.measured("after")
    assert after["loss"] < before["loss"]
    assert (second.measured("before"), second.measured("after")) == (before, after)
    assert sorted(first.logged("eval_loss")) == [2, 4]
    model = AutoModelForCausalLM.from_pretrained(job.folder / "final_model")
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert measured_alone(model, job) == pytest.approx(after, rel=1e-4)

    # It goes on from what both wrote, and comes to the same.
    checkpoint = job.folder / "checkpoints" / "checkpoint-3"
    assert (checkpoint / "pytorch_model_fsdp.bin").exists(), "the processes shared the weights"
    again = job_of(tmp_path / "again", "sft").model_copy(
        update={"resume_from": checkpoint, "before": dict(before)}
    )
    resumed = train(again)[0]
    losses = first.logged("loss")
    assert resumed.logged("loss") == pytest.approx({n: losses[n] for n in (4, 5, 6)}, rel=1e-4)
    assert resumed.measured("after") == pytest.approx(after, rel=1e-4)


def test_of_an_adapter_only_its_own_weights_are_gathered(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = job_of(tmp_path / "lora", "lora_sft")
    first, _ = train(job)
    after = first.measured("after")
    assert after["loss"] < first.measured("before")["loss"]
    base = AutoModelForCausalLM.from_pretrained(builtin_model_path("tiny-chat"))
    model = PeftModel.from_pretrained(base, str(job.folder / "final_lora"))
    assert measured_alone(model, job) == pytest.approx(after, rel=1e-4)
