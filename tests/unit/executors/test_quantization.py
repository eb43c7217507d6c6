"""4 and 8 bits: what may be asked for, on which device, by which engine."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mloc_dagster.errors import MissingExtraError, TerminalError
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.transformers import model
from mloc_dagster.executors.engines.transformers.model import (
    bitsandbytes_config,
    quantised_loading,
)
from mloc_dagster.executors.engines.transformers.pooling import load_engine
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.training.devices import (
    pick_device,
    quantization_config,
)
from mloc_dagster.executors.training.loading import load_policy
from mloc_dagster.schema import (
    EmbeddingSpec,
    InferenceSpec,
    LoraSftSpec,
    Model,
    SftSpec,
    TransformersOptions,
)

SOURCE = {"type": "builtin", "identifier": "tiny-chat"}
FOUR = {"load_in_4bit": True}


def options(**given: Any) -> TransformersOptions:
    return TransformersOptions.model_validate(given)


def training(**blocks: Any) -> LoraSftSpec:
    model = {"source": SOURCE, "transformers": FOUR}
    return LoraSftSpec.model_validate(
        {"taskType": "lora_sft", "model": model, "data": {"prompts": ["hi"]}, **blocks}
    )


def inference(transformers: dict[str, Any], **more: Any) -> InferenceSpec:
    model = {"source": SOURCE, "transformers": transformers}
    rows = {"type": "list", "items": ["hi"]}
    return InferenceSpec.model_validate(
        {"taskType": "inference", "model": model, "data": rows, **more}
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = model.importlib.util.find_spec
    monkeypatch.setattr(
        model.importlib.util,
        "find_spec",
        lambda name, *more: object() if name == "bitsandbytes" else found(name, *more),
    )
    monkeypatch.setattr("importlib.metadata.version", lambda _: "0.50.2")


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)


def test_what_contradicts_itself_or_would_be_ignored_is_refused() -> None:
    with pytest.raises(ValidationError, match="cannot both be true: remove one"):
        options(load_in_4bit=True, load_in_8bit=True)
    with pytest.raises(ValidationError, match="bnb_4bit_quant_type has no effect without load_in"):
        options(load_in_8bit=True, bnb_4bit_quant_type="nf4")
    assert options(load_in_8bit=False, load_in_4bit=False).quantised is None
    with pytest.raises(ValidationError, match=r"load_in_4bit freezes .* a lora block"):
        SftSpec.model_validate(
            {
                "taskType": "sft",
                "model": {"source": SOURCE, "transformers": FOUR},
                "data": {"prompts": ["hi"]},
            }
        )


def test_a_training_on_a_cpu_is_in_float32_and_says_so() -> None:
    lines: list[str] = []
    model, _ = load_policy(training(enforce_cpu=True), None, lines.append)
    assert lines[0] == (
        "training on a CPU in float32: model.transformers.load_in_4bit is for GPUs and is left "
        "aside"
    )
    assert {each.dtype for each in model.parameters()} == {torch.float32}


def test_a_training_that_requires_a_gpu_does_not_go_on_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TerminalError, match="require_gpu: true"):
        pick_device(training(require_gpu=True), lambda _: None)


@pytest.mark.usefixtures("installed")
def test_the_options_reach_the_library() -> None:
    four = quantization_config(training(), "cuda:0", "bfloat16")
    assert (four.load_in_4bit, four.load_in_8bit) == (True, False)
    assert (four.bnb_4bit_quant_type, four.bnb_4bit_use_double_quant) == ("nf4", False)
    assert four.bnb_4bit_compute_dtype == torch.bfloat16
    other = bitsandbytes_config(
        options(
            load_in_4bit=True,
            bnb_4bit_quant_type="fp4",
            bnb_4bit_compute_dtype="float16",
            bnb_4bit_use_double_quant=True,
        ),
        "bfloat16",
    )
    assert (other.bnb_4bit_quant_type, other.bnb_4bit_use_double_quant) == ("fp4", True)
    assert other.bnb_4bit_compute_dtype == torch.float16
    assert bitsandbytes_config(options(load_in_8bit=True)).load_in_8bit
    assert bitsandbytes_config(options()) is None


def test_a_missing_package_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"load_in_8bit needs the extra 'quantization'"):
        bitsandbytes_config(options(load_in_8bit=True))


@pytest.mark.usefixtures("installed", "a_gpu")
def test_inference_loads_quantised_weights_onto_the_gpu() -> None:
    loading = quantised_loading(options(**FOUR), enforce_cpu=False)
    assert loading["device_map"] == "cuda"
    assert loading["quantization_config"].bnb_4bit_compute_dtype == torch.bfloat16
    placed = quantised_loading(options(**FOUR, device_map="auto"), enforce_cpu=False)
    assert placed["device_map"] == "auto"
    assert quantised_loading(options(), enforce_cpu=False) == {}


def test_inference_on_a_cpu_never_answers_with_another_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    block = Model.model_validate({"source": SOURCE, "transformers": FOUR})
    with pytest.raises(TerminalError, match="load_in_4bit needs a GPU, and this worker has none"):
        model.load_model(block, enforce_cpu=False)
    with pytest.raises(TerminalError, match="the task keeps off GPUs"):
        model.load_model(block, enforce_cpu=True)
    rows = {"type": "list", "items": ["hi"]}
    vectors = EmbeddingSpec.model_validate(
        {"taskType": "embedding", "model": block.model_dump(), "data": rows}
    )
    with pytest.raises(TerminalError, match="load_in_4bit needs a GPU"):
        load_engine(vectors)


def test_the_engine_is_the_one_whose_option_it_is() -> None:
    choice = choose_engine(inference(FOUR))
    assert (choice.engine.name, choice.reason) == (
        "transformers",
        "model.transformers.load_in_4bit is its option",
    )


def test_a_warm_model_of_other_bits_is_another_model() -> None:
    executor = InferenceExecutor()
    widths: list[dict[str, Any]] = [
        {},
        FOUR,
        {"load_in_8bit": True},
        {**FOUR, "bnb_4bit_quant_type": "fp4"},
    ]
    assert len({executor.model_key(inference(width)) for width in widths}) == len(widths)
