"""vLLM's CUDA build on a real GPU, with a model of a realistic size and random weights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors import (
    Completion,
    EngineRequest,
    InferenceExecutor,
    ModelCache,
    Replies,
    VllmEngine,
    load_engine,
    vllm_build,
)
from mloc_dagster.models import builtin_model_path
from mloc_dagster.results import InputRow
from mloc_dagster.schema import Inference, InferenceSpec
from tests.gpu.devices import has_gpu

GIB = 1 << 30
ROWS = 512


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        vllm_build() != "cuda" or not has_gpu(), reason="needs vLLM's CUDA build and a GPU"
    ),
]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of about a billion parameters, 2 GB in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "llama-1b"
    tiny = builtin_model_path("tiny-chat")
    stored = json.loads((tiny / "config.json").read_text())
    config = LlamaConfig(
        vocab_size=stored["vocab_size"],  # what it generates must be in its tokenizer
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=stored.get("bos_token_id"),
        eos_token_id=stored.get("eos_token_id"),
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in tiny.iterdir():
        if "token" in file.name or file.suffix == ".jinja":
            shutil.copy(file, folder)
    return folder


def spec_of(folder: Path, gpus: int = 1, **vllm: Any) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {
                "source": {"type": "local", "identifier": str(folder)},
                "engine": "vllm",
                "vllm": {"gpu_memory_utilization": 0.4, "max_model_len": 2048, **vllm},
            },
            "resources": {"hardware": {"gpu": {"count": gpus}}},
            "data": {"type": "list", "items": ["x"]},
        }
    )


def requests(engine: VllmEngine, count: int, sampling: Inference) -> Iterator[EngineRequest]:
    for index in range(count):
        row = InputRow(index, f"Question {index}: " + "how many apples are there? " * 20)
        rendered = engine.render(row, Inference())
        (tokens,) = engine.tokenize([rendered.text], special=rendered.special)
        yield EngineRequest(row, rendered, tokens, sampling)


def answers(engine: VllmEngine, given: Iterator[EngineRequest]) -> dict[int, Completion]:
    done: dict[int, Completion] = {}
    failed: list[str] = []
    engine.run(
        given,
        Replies(
            lambda request, completion: done.__setitem__(request.row.index, completion),
            lambda request, reason: failed.append(reason),
            lambda: False,
            lambda line: None,
        ),
    )
    assert not failed
    return done


def bare_seconds(engine: VllmEngine, given: list[EngineRequest], max_tokens: int) -> float:
    """Seconds of the loop that `LLM.generate` is: add everything, step until nothing is left."""
    from vllm import SamplingParams
    from vllm.inputs.engine import tokens_input
    from vllm.sampling_params import RequestOutputKind

    start = time.perf_counter()
    for request in given:
        params = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine.llm.add_request(str(request.row.index), tokens_input(request.tokens), params)
    while engine.llm.has_unfinished_requests():
        engine.llm.step()
    return time.perf_counter() - start


def free_bytes() -> int:
    import torch

    return torch.cuda.mem_get_info(0)[0]


def engine_processes() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_throughput_beside_the_bare_engine(
    model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sampling = Inference(temperature=0, max_tokens=128, ignore_eos=True)
    engine = load_engine(spec_of(model_folder))
    try:
        given = list(requests(engine, ROWS, sampling))
        answers(engine, iter(given[:64]))  # kernels are warm after this
        engine.llm.reset_prefix_cache()
        bare_s = bare_seconds(engine, given, sampling.max_tokens)
        engine.llm.reset_prefix_cache()
        start = time.perf_counter()
        done = answers(engine, iter(given))
        ours_s = time.perf_counter() - start
    finally:
        engine.close()

    assert len(done) == ROWS
    assert all(each.answers[0].tokens == 128 for each in done.values())
    with capsys.disabled():
        print(  # noqa: T201  the figures are what it is run for
            f"\n{engine.label} on {engine.device}: {ROWS} rows × 128 tokens, "
            f"bare {bare_s:.2f} s, mloc {ours_s:.2f} s, ratio {bare_s / ours_s:.3f}"
        )


def test_eviction_ends_the_engines_process_and_frees_the_gpu(
    model_folder: Path, tmp_path: Path
) -> None:
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    specs = [spec_of(model_folder, enforce_eager=True), spec_of(twin, enforce_eager=True)]
    executor = InferenceExecutor()
    first = load_engine(specs[0])
    budget = int(first.size_bytes * 1.5)
    first.close()
    cache = ModelCache(None, capacity_bytes=budget)
    before, processes = free_bytes(), engine_processes()

    for spec in [*specs, *specs]:
        with cache.lease(executor, spec) as model:
            assert isinstance(model, VllmEngine)
            assert len(answers(model, requests(model, 4, Inference(max_tokens=4)))) == 4
            assert cache.keys() == (executor.model_key(spec),)
            assert before - free_bytes() < budget
    cache.clear()

    assert before - free_bytes() < GIB // 4
    assert engine_processes() <= processes


def test_an_evicted_engine_sleeps_and_answers_the_same_when_it_is_woken(
    model_folder: Path, tmp_path: Path
) -> None:
    twin = shutil.copytree(model_folder, tmp_path / "twin")
    how = {"enforce_eager": True, "enable_sleep_mode": True}
    first, second = spec_of(model_folder, **how), spec_of(twin, **how)
    executor, sampling = InferenceExecutor(), Inference(temperature=0, max_tokens=16)
    cache = ModelCache(1, sleeping_bytes=8 * GIB)
    before = free_bytes()
    texts: list[list[str]] = []
    engines: list[VllmEngine] = []

    for spec in (first, second, first):
        with cache.lease(executor, spec) as model:
            assert isinstance(model, VllmEngine)
            done = answers(model, requests(model, 4, sampling))
            texts.append([done[index].answers[0].text for index in sorted(done)])
            engines.append(model)
    assert engines[0] is engines[2]
    assert texts[0] == texts[2]
    cache.clear()

    assert before - free_bytes() < GIB // 4


def test_more_gpus_than_there_are_is_one_clear_error(model_folder: Path) -> None:
    with pytest.raises(TerminalError, match=r"wants 64 GPUs .*this worker has"):
        load_engine(spec_of(model_folder, gpus=64))
