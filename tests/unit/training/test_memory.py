"""What a training takes, and what a user is told when it was too much."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.training.memory_estimate import (
    MemoryEstimate,
    estimate_memory,
    explain_oom,
    is_out_of_memory,
    shape_of,
)
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import DpoSpec, GrpoSpec, LoraSftSpec, SftSpec, TrainingSpec

LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def make_spec(kind: type[TrainingSpec] = SftSpec, **blocks: Any) -> TrainingSpec:
    name = {SftSpec: "sft", LoraSftSpec: "lora_sft", DpoSpec: "dpo", GrpoSpec: "grpo"}[kind]
    source = {"type": "builtin", "identifier": "tiny-chat"}
    given = {"taskType": name, "model": {"source": source}, "data": {"prompts": ["hi"]}}
    return kind.model_validate({**given, **blocks})


def of(spec: TrainingSpec, config: dict[str, Any] = LLAMA_8B, **how: Any) -> MemoryEstimate:
    found = estimate_memory(config, spec, **how)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (LLAMA_8B, 8_030_261_248),
        (json.loads((builtin_model_path("tiny-chat") / "config.json").read_text()), 480_128),
    ],
)
def test_weights_are_counted_from_the_config(config: dict[str, Any], parameters: int) -> None:
    shape = shape_of(config)
    assert shape is not None
    assert shape.parameters == parameters


def test_gpt2s_names_are_understood() -> None:
    config = {
        "model_type": "gpt2",
        "vocab_size": 50257,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "n_positions": 1024,
    }
    assert of(make_spec(), config).parameters == pytest.approx(124_000_000, rel=0.02)


def test_all_weights_take_sixteen_bytes_each_and_an_adapter_few() -> None:
    full = of(make_spec())
    kept = full.weights_bytes + full.gradient_bytes + full.optimiser_bytes
    assert kept == 16 * full.parameters
    adapter = of(make_spec(LoraSftSpec, lora={"r": 16}, training={"bf16": True}))
    assert adapter.trained == 32 * 16 * (4096 + 4096 + 4096 + 1024)
    assert adapter.weights_bytes == 2 * adapter.parameters + 4 * adapter.trained
    assert adapter.gradient_bytes + adapter.optimiser_bytes == 12 * adapter.trained


def test_preferences_take_a_reference_model_unless_there_is_an_adapter() -> None:
    assert of(make_spec()).other_models_bytes == 0
    full = of(make_spec(DpoSpec))
    assert full.other_models_bytes == full.weights_bytes
    assert of(make_spec(DpoSpec, lora={})).other_models_bytes == 0
    rewarded = {"reward_model": {"identifier": "judge"}}
    assert of(make_spec(GrpoSpec, **rewarded)).other_models_bytes == full.weights_bytes


def test_activations_follow_batch_length_and_checkpointing() -> None:
    def activations(**training: Any) -> int:
        return of(make_spec(training={"max_length": 512, **training})).activation_bytes

    one = activations(per_device_train_batch_size=1)
    assert activations(per_device_train_batch_size=8) == pytest.approx(8 * one)
    assert activations(per_device_train_batch_size=1, max_length=1024) == pytest.approx(2 * one)
    saved = activations(per_device_train_batch_size=1, gradient_checkpointing=True)
    assert saved < one / 4


def test_small_optimisers_and_cpus_are_known() -> None:
    small = of(make_spec(training={"optim": "adamw_8bit"}))
    assert small.optimiser_bytes == 2 * small.parameters
    half = make_spec(
        model={**make_spec().model.model_dump(), "transformers": {"dtype": "bfloat16"}}
    )
    assert of(half).weights_bytes == 2 * small.parameters
    assert of(half, device="cpu").weights_bytes == 4 * small.parameters


def test_a_model_of_unknown_shape_has_no_estimate() -> None:
    assert estimate_memory({"model_type": "other"}, make_spec()) is None


def test_the_text_names_parts_in_readable_units() -> None:
    text = of(make_spec(training={"max_length": 128})).text()
    assert "weights 29.9 GiB" in text
    assert "optimiser 59.8 GiB" in text
    assert "8,030,261,248 weights" in text
    assert "reference" not in text


def test_a_want_of_memory_is_told_from_other_errors() -> None:
    class OutOfMemoryError(RuntimeError):
        pass

    cpu = (
        "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert is_out_of_memory(OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError(cpu))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(TerminalError("the memory of this is out"))
    wrapped = TerminalError("the step failed")
    wrapped.__cause__ = MemoryError()
    assert is_out_of_memory(wrapped)


def test_the_explanation_names_what_to_lower_first() -> None:
    spec = make_spec(training={"per_device_train_batch_size": 8, "max_length": 2048})
    error = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")
    lines = explain_oom(error, of(spec), spec).splitlines()
    assert "Tried to allocate 2.00 GiB." in lines[0]
    assert "GiB (weights" in lines[0]
    assert lines[1].startswith("1. training.per_device_train_batch_size: 4 instead of 8")
    assert any("max_length: 1024 instead of 2048" in line for line in lines)
    assert any("a lora block" in line for line in lines)


def test_the_explanation_offers_only_what_is_not_done_yet() -> None:
    spec = make_spec(
        LoraSftSpec,
        training={
            "per_device_train_batch_size": 1,
            "gradient_checkpointing": True,
            "max_length": 128,
            "bf16": True,
        },
        model={
            "source": {"type": "builtin", "identifier": "tiny-chat"},
            "transformers": {"load_in_4bit": True},
        },
    )
    assert explain_oom(MemoryError(), None, spec).splitlines() == [
        "the training ran out of memory (MemoryError). What helps:",
        "use a smaller model, or a device with more memory",
    ]


@pytest.mark.parametrize(("option", "each"), [("load_in_4bit", 0.55), ("load_in_8bit", 1.05)])
def test_fewer_bits_take_less_memory_on_a_gpu_alone(option: str, each: float) -> None:
    source = {"type": "builtin", "identifier": "tiny-chat"}
    spec = make_spec(LoraSftSpec, model={"source": source, "transformers": {option: True}})
    on_gpu, on_cpu = estimate_memory(LLAMA_8B, spec), estimate_memory(LLAMA_8B, spec, device="cpu")
    assert on_gpu is not None
    assert on_cpu is not None
    adapter = 4 * on_gpu.trained
    assert on_gpu.weights_bytes == int(each * on_gpu.parameters) + adapter
    assert on_cpu.weights_bytes == 4 * on_cpu.parameters + adapter


def test_an_adapter_that_does_not_fit_is_told_of_fewer_bits() -> None:
    told = explain_oom(MemoryError(), None, make_spec(LoraSftSpec))
    assert "model.transformers.load_in_4bit: true" in told
    source = {"type": "builtin", "identifier": "tiny-chat"}
    quantised = {"source": source, "transformers": {"load_in_4bit": True}}
    assert "load_in" not in explain_oom(
        MemoryError(), None, make_spec(LoraSftSpec, model=quantised)
    )
