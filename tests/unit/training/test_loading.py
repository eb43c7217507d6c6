"""Loading a model to train: weights, precision, tokenizer, adapters, devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from mloc_dagster.errors import InputError, TerminalError
from mloc_dagster.executors.training.devices import (
    mixed_precision,
    pick_device,
    weights_dtype,
)
from mloc_dagster.executors.training.loading import ensure_pad_token, load_classifier, load_policy
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import LoraSftSpec, RewardSpec, SftSpec, TrainingSpec
from mloc_dagster.settings import settings

TINY = builtin_model_path("tiny-chat")
SPECS = {"sft": SftSpec, "lora_sft": LoraSftSpec, "reward": RewardSpec}


def make_spec(task_type: str = "sft", **blocks: Any) -> TrainingSpec:
    source = {"type": "builtin", "identifier": "tiny-chat"}
    model = {"source": source, **blocks.pop("model", {})}
    given = {"taskType": task_type, "model": model, "data": {"prompts": ["hi"]}, **blocks}
    return SPECS[task_type].model_validate(given)


def quiet(_: str) -> None:
    """Hears nothing."""


def policy(spec: TrainingSpec, start_from: Path | None = None) -> Any:
    return load_policy(spec, start_from, quiet)[0]


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


def adapter(folder: Path, *, targets: list[str] | None = None, r: int = 4) -> Path:
    """Saves an adapter that changes what tiny-chat says."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(TINY)
    config = peft.LoraConfig(
        r=r, target_modules=targets, task_type="CAUSAL_LM", init_lora_weights=False
    )
    peft.get_peft_model(base, config).save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


def copied(folder: Path, **config: Any) -> Path:
    """Copies tiny-chat with other settings."""
    shutil.copytree(TINY, folder)
    place = folder / "config.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **config}))
    return folder


def test_a_model_is_loaded_to_be_trained_with_all_its_weights() -> None:
    model, tokenizer = load_policy(make_spec(), None, quiet)
    assert model.training
    assert all(each.requires_grad for each in model.parameters())
    assert (model.device.type, model.dtype) == ("cpu", torch.float32)
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]


def test_a_classifier_has_one_logit_that_is_the_same_each_time() -> None:
    spec = make_spec("reward")
    model, tokenizer = load_classifier(spec, None, quiet)
    again, _ = load_classifier(spec, None, quiet)
    assert model.config.num_labels == 1
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert logits(model).shape == (1, 1)
    assert torch.equal(logits(model), logits(again))
    other, _ = load_classifier(make_spec("reward", training={"seed": 7}), None, quiet)
    assert not torch.equal(logits(model), logits(other))


def test_a_full_model_takes_the_place_of_the_models_own_weights(tmp_path: Path) -> None:
    earlier = AutoModelForCausalLM.from_pretrained(TINY)
    with torch.no_grad():
        earlier.model.norm.weight.mul_(2)
    earlier.save_pretrained(tmp_path / "full")
    model, tokenizer = load_policy(make_spec(), tmp_path / "full", quiet)
    assert torch.equal(logits(model), logits(earlier))
    assert tokenizer.chat_template  # the model's own, as none lies beside the weights


def test_training_goes_on_with_an_adapter_as_it_is(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", targets=["q_proj", "o_proj"], r=4)
    lines: list[str] = []
    spec = make_spec("lora_sft", lora={"r": 8, "target_modules": ["q_proj", "o_proj"]})
    model, _ = load_policy(spec, folder, lines.append)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert model.peft_config["default"].r == 4
    assert "lora.r stays 4 (the template has 8)" in lines[-1]
    assert "target_modules" not in lines[-1]
    plain = AutoModelForCausalLM.from_pretrained(TINY)
    loaded = peft.PeftModel.from_pretrained(plain, folder)
    assert torch.equal(logits(model), logits(loaded))


def test_an_adapter_is_merged_where_all_weights_are_trained(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora")
    model = policy(make_spec(), folder)
    assert not hasattr(model, "peft_config")
    assert all(each.requires_grad for each in model.parameters())
    going_on = policy(make_spec("lora_sft"), folder)
    assert torch.allclose(logits(model), logits(going_on), atol=1e-4)
    assert not torch.allclose(logits(model), logits(policy(make_spec())), atol=1e-2)


def test_adapters_of_the_model_are_merged_before_training(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora")
    named = {"adapters": [{"path": str(folder)}]}
    merged = policy(make_spec(), folder)
    assert torch.equal(logits(policy(make_spec(model=named))), logits(merged))
    new = policy(make_spec("lora_sft", model=named))
    assert torch.equal(logits(new), logits(merged))  # a new adapter changes nothing yet
    asked = {"adapters": [{"path": str(folder), "apply": "request"}]}
    with pytest.raises(InputError, match=r"model.adapters\[0\] has apply: request"):
        policy(make_spec(model=asked))


def test_a_reward_model_starts_from_what_a_chat_model_learned(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora")
    lines: list[str] = []
    model, _ = load_classifier(make_spec("reward", lora={"r": 2}), folder, lines.append)
    assert model.peft_config["default"].task_type == "SEQ_CLS"
    assert any("of type CAUSAL_LM: merged" in line for line in lines)
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    assert any("score" in name for name in trained)
    assert not torch.equal(
        logits(model), logits(load_classifier(make_spec("reward"), None, quiet)[0])
    )


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora")
    wide = tmp_path / "wide"
    config = AutoConfig.from_pretrained(TINY)
    config.hidden_size, config.intermediate_size = 64, 80
    AutoModelForCausalLM.from_config(config).save_pretrained(wide)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(wide)
    source = {"source": {"type": "local", "identifier": str(wide)}}
    for spec in (make_spec(model=source), make_spec("lora_sft", model=source)):
        with pytest.raises(TerminalError, match="does not fit the model"):
            policy(spec, folder)


def test_a_classifier_is_no_chat_model(tmp_path: Path) -> None:
    judge = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=1)
    judge.save_pretrained(tmp_path / "judge")
    with pytest.raises(TerminalError, match=r"LlamaForSequenceClassification.*writes no text"):
        policy(make_spec(), tmp_path / "judge")
    again, _ = load_classifier(make_spec("reward"), tmp_path / "judge", quiet)
    assert torch.equal(again.score.weight, judge.score.weight)
    three = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    with pytest.raises(TerminalError, match="has 3 labels"):
        load_classifier(make_spec("reward"), tmp_path / "three", quiet)


def test_target_modules_that_do_not_exist_are_named_with_those_that_do() -> None:
    spec = make_spec("lora_sft", lora={"target_modules": ["q_proj", "qproj"]})
    with pytest.raises(TerminalError, match="no 'qproj'; did you mean 'q_proj'") as caught:
        policy(spec)
    assert "down_proj, embed_tokens, gate_proj" in str(caught.value)
    with pytest.raises(TerminalError, match="no regular expression"):
        policy(make_spec("lora_sft", lora={"target_modules": "(q"}))


def test_lora_takes_every_setting_of_the_template() -> None:
    block = {
        "r": 8,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "bias": "lora_only",
        "target_modules": "all-linear",
        "use_rslora": True,
    }
    config = policy(make_spec("lora_sft", lora=block)).peft_config["default"]
    for name in ("r", "lora_alpha", "lora_dropout", "bias", "use_rslora"):
        assert getattr(config, name) == block[name]
    assert {"down_proj", "gate_proj", "k_proj"} <= config.target_modules
    default = policy(make_spec("lora_sft")).peft_config["default"]
    assert default.target_modules == {"q_proj", "v_proj"}


def test_pickled_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(tmp_path / "old")
    (folder / "model.safetensors").unlink()
    weights = AutoModelForCausalLM.from_pretrained(TINY).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    source = {"source": {"type": "local", "identifier": str(folder)}}
    with pytest.raises(TerminalError, match=r"pytorch_model\.bin.*MLOC_ALLOW_PICKLE"):
        policy(make_spec(model=source))
    with pytest.raises(TerminalError, match=r"pytorch_model\.bin.*MLOC_ALLOW_PICKLE"):
        policy(make_spec(), folder)
    monkeypatch.setenv("MLOC_ALLOW_PICKLE", "true")
    settings.cache_clear()
    assert torch.equal(logits(policy(make_spec(model=source))), logits(policy(make_spec())))


def test_a_cpu_trains_in_float32_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    spec = make_spec(training={"bf16": True}, enforce_cpu=True)
    model, _ = load_policy(spec, None, lines.append)
    assert model.dtype == torch.float32
    assert lines == ["training on a CPU in float32: training.bf16 is for GPUs and is left aside"]
    assert mixed_precision(spec, "cpu") == "no"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device(make_spec(enforce_cpu=True), quiet) == "cpu"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device(make_spec(), quiet) == "cuda:1"


def test_a_gpu_that_is_required_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TerminalError, match="torch finds no CUDA device"):
        policy(make_spec(require_gpu=True))
    with pytest.raises(TerminalError, match="cannot both be true"):
        policy(make_spec(require_gpu=True, enforce_cpu=True))


def test_the_precision_on_a_gpu_depends_on_what_is_trained() -> None:
    bf16 = {"training": {"bf16": True}}
    half = {"model": {"transformers": {"dtype": "bfloat16"}}}
    assert weights_dtype(make_spec(**bf16), "cuda:0", "bfloat16") == "float32"
    assert weights_dtype(make_spec(**half), "cuda:0", "float32") == "bfloat16"
    assert weights_dtype(make_spec("lora_sft", **bf16), "cuda:0", "float32") == "bfloat16"
    assert weights_dtype(make_spec("lora_sft"), "cuda:0", "float16") == "float16"
    assert mixed_precision(make_spec(**bf16), "cuda:0") == "bf16"
    with pytest.raises(TerminalError, match=r"set training\.fp16"):
        weights_dtype(make_spec(model={"transformers": {"dtype": "float16"}}), "cuda", "float32")
    with pytest.raises(TerminalError, match="cannot both be true"):
        mixed_precision(make_spec(training={"bf16": True, "fp16": True}), "cuda:0")


@pytest.mark.parametrize(
    ("special", "taken"),
    [
        (["<eos>", "<unk>", "<|reserved_0|>"], "<|reserved_0|>"),
        (["<eos>", "<unk>", "<|finetune_pad_id|>"], "<|finetune_pad_id|>"),
        (["<eos>", "<unk>"], "<unk>"),
        (["<eos>"], "<|pad|>"),
    ],
)
def test_a_missing_pad_token_is_found_or_added(special: list[str], taken: str) -> None:
    words = {word: number for number, word in enumerate([*special, "a", "b"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words)),
        eos_token="<eos>",
        pad_token="<eos>",
        unk_token="<unk>" if "<unk>" in special else None,
        additional_special_tokens=special[2:],
    )
    config = AutoConfig.from_pretrained(TINY)
    config.vocab_size, config.eos_token_id, config.pad_token_id = len(words), 0, 0
    model = AutoModelForCausalLM.from_config(config)
    lines: list[str] = []
    ensure_pad_token(model, tokenizer, lines.append)
    assert tokenizer.pad_token == taken
    assert tokenizer.pad_token_id == model.config.pad_token_id
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id
    assert f"pad token of its own: {taken!r} is used" in lines[0]
    rows = len(words) + (taken == "<|pad|>")
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert model.get_output_embeddings().weight.shape[0] == rows
    ensure_pad_token(model, tokenizer, lines.append)
    assert len(lines) == 1 + (taken == "<|pad|>")
