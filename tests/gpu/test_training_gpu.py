"""Trainings on real GPUs: half a billion random weights, all of them or an adapter, in bfloat16."""

from __future__ import annotations

import importlib.util
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.executors import Attempt, Finished, Progress, plan_training, run_training
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import open_store
from mloc_dagster.schema import TrainingSpec, find_task_type
from tests.gpu.devices import gpus, has_gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not has_gpu(), reason="needs a GPU"),
]

SHAPE = {"hidden_size": 1536, "intermediate_size": 4608, "num_hidden_layers": 18}
HEADS = {"num_attention_heads": 24, "num_key_value_heads": 8}
ROWS = [{"prompt": f"What is {n} + 1?", "completion": f"It is {n + 1}!"} for n in range(64)]
LORA = {"r": 16, "target_modules": "all-linear"}
two_gpus = pytest.mark.skipif(gpus() < 2, reason="needs two GPUs")


@dataclass
class Trained:
    """A training that has ended.

    Attributes:
        finished: What it said at its end.
        losses: The logged losses, in order.
        peak: Bytes of the GPU that it took at most.
        folder: What it left.
    """

    finished: Finished
    attempt: Attempt
    losses: list[float]
    peak: int
    folder: Path


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of half a billion random weights, in bfloat16, with the tokenizer of tiny-chat."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llama"
    source = builtin_model_path("tiny-chat")
    tokenizer = AutoTokenizer.from_pretrained(source)
    config = LlamaConfig(
        vocab_size=1152,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SHAPE,
        **HEADS,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in source.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return folder


def train(
    model: Path,
    task_type: str,
    *,
    ranks: int = 1,
    training: dict[str, Any] | None = None,
    transformers: dict[str, Any] | None = None,
) -> Trained:
    """Trains in processes of its own, as a worker would."""
    import torch

    blocks: dict[str, Any] = {"lora": LORA} if task_type == "lora_sft" else {}
    spec = find_task_type(task_type).spec.model_validate(
        {
            "taskType": task_type,
            "require_gpu": True,
            "model": {
                "source": {"type": "local", "identifier": str(model)},
                "transformers": transformers or {},
            },
            "data": {"rows": ROWS},
            "training": {
                "max_steps": 20,
                "per_device_train_batch_size": 8,
                "learning_rate": 1e-4 if task_type == "sft" else 1e-3,
                "logging_steps": 1,
                "save_steps": 10,
                "save_total_limit": 1,
                "bf16": True,
                **(training or {}),
            },
            "evaluation": {"data": {"rows": ROWS[:8]}, "metrics": ["loss"]},
            **blocks,
        }
    )
    assert isinstance(spec, TrainingSpec)
    torch.cuda.empty_cache()  # what an earlier test left in this process
    free = torch.cuda.mem_get_info(0)[0]
    peak = 0

    def look(_: Progress) -> None:
        # PyTorch keeps what it has had until its process ends.
        nonlocal peak
        peak = max(peak, free - torch.cuda.mem_get_info(0)[0])

    folder = open_store().task(f"{task_type}-{uuid.uuid4().hex[:8]}")
    plan = plan_training(folder, folder.name, spec, {})
    attempt = run_training(
        *(folder, folder.name, spec, plan.shards[0]),
        attempt=1,
        ranks=ranks,
        start_from=None,
        cancelled=lambda: False,
        on_progress=look,
    )
    assert attempt.finished is not None
    losses = [each["loss"] for each in attempt.finished.history if "loss" in each]
    place = Path(os.environ["MLOC_RESULTS_URL"]) / folder.name
    return Trained(attempt.finished, attempt, losses, peak, place)


def loss_of(model: Any) -> float:
    """Returns the loss of rows that it was trained on, on the first GPU in bfloat16."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(builtin_model_path("tiny-chat"))
    model.to("cuda:0").eval()
    found: list[float] = []
    for row in ROWS[:8]:
        chat = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to("cuda:0")
        with torch.no_grad():
            found.append(float(model(ids, labels=ids).loss))
    return sum(found) / len(found)


def learnt(done: Trained) -> bool:
    before, after = done.attempt.before, done.attempt.after
    assert before is not None
    assert after is not None
    return after["loss"] < 0.8 * before["loss"] and done.losses[-1] < done.losses[0]


def test_all_weights_and_an_adapter_learn_and_load(model_folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    full, adapter = train(model_folder, "sft"), train(model_folder, "lora_sft")
    assert learnt(full)
    assert learnt(adapter)
    assert full.finished.device == "cuda:0"
    assert adapter.peak < 0.6 * full.peak, "neither gradients nor AdamW's for frozen weights"

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)

    untrained = loss_of(base())
    whole = AutoModelForCausalLM.from_pretrained(full.folder / "final_model")
    assert whole.dtype == torch.bfloat16, "as its files were"
    assert loss_of(whole) < untrained
    assert loss_of(PeftModel.from_pretrained(base(), adapter.folder / "final_lora")) < untrained
    checkpoints = full.folder / "checkpoints" / "checkpoint-20"
    assert loss_of(AutoModelForCausalLM.from_pretrained(checkpoints)) < untrained


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra quantization"
)
def test_weights_of_4_bits_take_less(model_folder: Path) -> None:
    plain = train(model_folder, "lora_sft")
    small = train(model_folder, "lora_sft", transformers={"load_in_4bit": True})
    assert learnt(small)
    assert small.peak < plain.peak


@two_gpus
@pytest.mark.parametrize("how", [{}, {"fsdp": True}], ids=["ddp", "fsdp"])
def test_two_gpus_train_together(model_folder: Path, how: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    alone = train(model_folder, "sft")
    both = train(model_folder, "sft", ranks=2, training=how)
    assert learnt(both)
    if how:
        assert both.peak < alone.peak, "each holds half of the weights"
    untrained = loss_of(AutoModelForCausalLM.from_pretrained(model_folder))
    whole = AutoModelForCausalLM.from_pretrained(both.folder / "final_model")
    assert loss_of(whole) < 0.8 * untrained
