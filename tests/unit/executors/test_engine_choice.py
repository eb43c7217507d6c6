"""Which engine a task gets: build × GPU × enforce_cpu × the template's word × the operator's."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.vllm import loader
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.settings import settings

VLLM, HF = "vllm", "transformers"

# What vLLM lacks here, by (build, GPU, enforce_cpu); None where it can run.
OBSTACLES: dict[tuple[str | None, bool, bool], str | None] = {
    (None, False, False): "vLLM is not installed here",
    (None, False, True): "vLLM is not installed here",
    (None, True, False): "vLLM is not installed here",
    (None, True, True): "vLLM is not installed here",
    ("cpu", False, False): None,
    ("cpu", False, True): None,
    ("cpu", True, False): "would leave the GPU of this machine idle",
    ("cpu", True, True): None,
    ("cuda", False, False): "there is no GPU here",
    ("cuda", False, True): "enforce_cpu forbids one",
    ("cuda", True, False): None,
    ("cuda", True, True): "enforce_cpu forbids one",
}

# Where the template names no engine: the choice by (can vLLM run, enforce_cpu, MLOC_ENGINE).
UNNAMED: dict[tuple[bool, bool, str], tuple[str, str]] = {
    (True, False, "auto"): (VLLM, "build is installed, and there is"),
    (True, False, VLLM): (VLLM, "MLOC_ENGINE asks for it"),
    (True, False, HF): (HF, "MLOC_ENGINE asks for it"),
    (False, False, "auto"): (HF, "vLLM"),
    (False, False, VLLM): (HF, "vLLM"),
    (False, False, HF): (HF, "MLOC_ENGINE asks for it"),
    **{
        (can_run, True, word): (HF, "enforce_cpu rules vLLM out")
        for can_run, word in product((True, False), ("auto", VLLM, HF))
    },
}

HERE = list(OBSTACLES)
WORDS = ["auto", VLLM, HF]


@pytest.fixture
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    build, gpu, enforce_cpu = request.param
    monkeypatch.setattr(loader, "vllm_build", lambda: build)
    monkeypatch.setattr(loader, "_has_gpu", lambda: gpu)
    return build, gpu, enforce_cpu


def spec_of(named: str | None, *, enforce_cpu: bool) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": enforce_cpu,
            "model": {"source": {"identifier": "x"}, "engine": named},
            "data": {"type": "list", "items": ["x"]},
        }
    )


def operator_says(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_ENGINE", word)
    settings.cache_clear()


@pytest.mark.parametrize("here", HERE, indirect=True)
@pytest.mark.parametrize("word", WORDS)
def test_a_template_that_asks_for_transformers_gets_it(
    here: tuple[Any, ...], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_says(word, monkeypatch)

    choice = choose_engine(spec_of(HF, enforce_cpu=here[2]))

    assert (choice.engine.name, choice.reason) == (HF, "the template asks for it")


@pytest.mark.parametrize("here", HERE, indirect=True)
@pytest.mark.parametrize("word", WORDS)
def test_a_template_that_asks_for_vllm_gets_it_or_hears_why_not(
    here: tuple[Any, ...], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_says(word, monkeypatch)
    spec, obstacle = spec_of(VLLM, enforce_cpu=here[2]), OBSTACLES[here]

    if obstacle is None:
        choice = choose_engine(spec)
        assert (choice.engine.name, choice.reason) == (VLLM, "the template asks for it")
    else:
        with pytest.raises(TerminalError, match=f"asks for vLLM, but .*{obstacle}"):
            choose_engine(spec)


@pytest.mark.parametrize("here", HERE, indirect=True)
@pytest.mark.parametrize("word", WORDS)
def test_without_a_word_of_the_template_the_operator_decides_and_then_what_can_run(
    here: tuple[Any, ...], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator_says(word, monkeypatch)
    obstacle = OBSTACLES[here]
    engine, reason = UNNAMED[obstacle is None, here[2], word]

    choice = choose_engine(spec_of(None, enforce_cpu=here[2]))

    assert choice.engine.name == engine
    assert reason in choice.reason
    if reason == "vLLM":  # what keeps it from running
        assert obstacle is not None
        assert obstacle in choice.reason


@pytest.mark.parametrize(
    ("here", "reason"),
    [
        (("cpu", False, False), "its CPU build is installed, and there is no GPU"),
        (("cuda", True, False), "its CUDA build is installed, and there is a GPU"),
    ],
    indirect=["here"],
)
@pytest.mark.usefixtures("here")
def test_the_reason_names_the_build(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operator_says("auto", monkeypatch)

    assert choose_engine(spec_of(None, enforce_cpu=False)).reason == reason
