"""The final weights: what plain transformers and PEFT load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mloc_dagster.executors.training.loading import load_classifier, load_policy
from mloc_dagster.executors.training.weight_files import save_final
from mloc_dagster.models import builtin_model_path
from tests.unit.training.test_loading import copied, logits, make_spec, quiet

TINY = builtin_model_path("tiny-chat")


def train_a_little(model: Any) -> None:
    """Moves every weight that is trained."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.02)


def test_a_model_is_saved_whole_and_loads_by_itself(tmp_path: Path) -> None:
    model, tokenizer = load_policy(make_spec(), None, quiet)
    train_a_little(model)
    tmp_path.chmod(0o750)
    model.config.use_cache = False  # as gradient checkpointing does
    assert save_final(model, tokenizer, tmp_path) == "final_model"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["final_model"]
    folder = tmp_path / "final_model"
    assert sorted(path.name for path in folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert folder.stat().st_mode & 0o777 == 0o750  # whoever reads the task reads its model
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.use_cache is True
    chat = [{"role": "user", "content": "hello"}]
    again, before = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(TINY)
    assert again.apply_chat_template(chat) == before.apply_chat_template(chat)


def test_weights_trained_in_float32_are_saved_as_their_files_were(tmp_path: Path) -> None:
    source = copied(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.bfloat16).save_pretrained(source)
    spec = make_spec(model={"source": {"type": "local", "identifier": str(source)}})
    model, tokenizer = load_policy(spec, None, quiet)
    assert model.dtype == torch.float32
    train_a_little(model)
    save_final(model, tokenizer, tmp_path)
    folder = tmp_path / "final_model"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    size = (source / "model.safetensors").stat().st_size
    assert (folder / "model.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight.to(torch.bfloat16))
    assert model.dtype == torch.float32  # what is in memory stays as it is


def test_an_adapter_is_saved_alone_and_loads_onto_its_model(tmp_path: Path) -> None:
    model, tokenizer = load_policy(make_spec("lora_sft", lora={"r": 2}), None, quiet)
    train_a_little(model)
    model.add_adapter("ref", peft.LoraConfig(r=2, task_type="CAUSAL_LM"))  # as DPO does
    assert save_final(model, tokenizer, tmp_path) == "final_lora"
    folder = tmp_path / "final_lora"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    base = AutoModelForCausalLM.from_pretrained(TINY)
    assert torch.equal(logits(peft.PeftModel.from_pretrained(base, folder)), logits(model))
    further, _ = load_policy(make_spec("lora_sft"), folder, quiet)
    assert torch.equal(logits(further), logits(model))


@pytest.mark.parametrize("lora", [None, {"r": 2}])
def test_a_classifier_keeps_its_head(tmp_path: Path, lora: dict[str, int] | None) -> None:
    model, tokenizer = load_classifier(make_spec("reward", lora=lora), None, quiet)
    train_a_little(model)
    name = save_final(model, tokenizer, tmp_path)
    if lora is None:
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / name)
    else:
        base = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=1)
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / name)
    assert torch.equal(logits(loaded), logits(model))


def test_a_second_attempt_takes_the_first_ones_place(tmp_path: Path) -> None:
    model, tokenizer = load_policy(make_spec(), None, quiet)
    save_final(model, tokenizer, tmp_path)
    (tmp_path / "final_model" / "stale").write_text("left by the first")
    train_a_little(model)
    save_final(model, tokenizer, tmp_path)
    assert os.listdir(tmp_path) == ["final_model"]  # noqa: PTH208
    assert not (tmp_path / "final_model" / "stale").exists()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")
    assert torch.equal(logits(loaded), logits(model))


def test_a_save_that_fails_leaves_the_former_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_policy(make_spec(), None, quiet)
    save_final(model, tokenizer, tmp_path)

    def full(_: str) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        save_final(model, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["final_model"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "final_model")
