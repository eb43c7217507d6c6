"""vLLM's engine for real: what the engines' contract suite does not ask of every engine."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from mloc_dagster.errors import TaskCancelled, TerminalError
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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None or vllm_build() != "cpu",
        reason="needs vLLM's CPU build",
    ),
]

GREEDY = Inference(temperature=0, max_tokens=8)
LIKELY = Inference(temperature=0, max_tokens=2, logprobs=1)
CACHE_BYTES = 256 << 20


def spec_of(source: dict[str, str], **model: Any) -> InferenceSpec:
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {"source": source, "engine": "vllm", **model},
            "data": {"type": "list", "items": ["x"]},
        }
    )


def small_spec(source: dict[str, str] | None = None, **model: Any) -> InferenceSpec:
    model["vllm"] = {"kv_cache_memory_bytes": CACHE_BYTES, "max_num_seqs": 16} | model.get(
        "vllm", {}
    )
    return spec_of(source or {"type": "builtin", "identifier": "tiny-chat"}, **model)


@pytest.fixture(scope="session")
def engine() -> Iterator[VllmEngine]:
    engine = load_engine(small_spec())
    yield engine
    engine.close()


@dataclass
class Desk:
    """Collects what becomes of requests."""

    done: dict[int, Completion] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    cancelled: Callable[[], bool] = lambda: False

    def replies(self) -> Replies:
        return Replies(
            lambda request, completion: self.done.__setitem__(request.row.index, completion),
            lambda request, reason: self.failed.__setitem__(request.row.index, reason),
            lambda: self.cancelled(),
            self.lines.append,
        )

    def texts(self) -> dict[int, str]:
        return {index: each.answers[0].text for index, each in self.done.items()}


def request_of(
    engine: VllmEngine,
    index: int,
    prompt: str,
    sampling: Inference = GREEDY,
    adapter: str | None = None,
) -> EngineRequest:
    row = InputRow(index, prompt)
    rendered = engine.render(row, Inference())
    (tokens,) = engine.tokenize([rendered.text], special=rendered.special)
    return EngineRequest(row, rendered, tokens, sampling, seed=11, adapter=adapter)


def answer(engine: VllmEngine, *requests: EngineRequest) -> Desk:
    desk = Desk()
    engine.run(iter(requests), desk.replies())
    return desk


def first_logprob(completion: Completion) -> float:
    logprobs = completion.answers[0].logprobs
    assert logprobs is not None
    return logprobs[0].logprob


def questions(count: int, words: int = 12) -> list[str]:
    return [f"Question {i}: what is " + " plus ".join(["one"] * words) + "?" for i in range(count)]


def test_requests_are_drawn_as_others_finish(engine: VllmEngine) -> None:
    desk = Desk()
    drawn, ahead = 0, []

    def requests() -> Iterator[EngineRequest]:
        nonlocal drawn
        for index, prompt in enumerate(questions(120)):
            drawn += 1
            ahead.append(drawn - len(desk.done))
            yield request_of(engine, index, prompt)

    engine.run(requests(), desk.replies())

    assert len(desk.done) == 120
    assert max(ahead) <= engine.capacity + 8


def test_a_request_knows_its_share_of_the_engines_time(engine: VllmEngine) -> None:
    requests = [request_of(engine, i, prompt) for i, prompt in enumerate(questions(40))]

    done = answer(engine, *requests).done

    assert all(0 < each.engine_s < each.latency_s for each in done.values())
    # All arrive at once or wait for another: the last one's end is at least the sum of shares.
    assert (
        sum(each.engine_s for each in done.values())
        < 2 * max(each.latency_s for each in done.values()) * len(done) / engine.capacity
    )


def test_what_vllm_refuses_fails_alone(engine: VllmEngine) -> None:
    bad_form = Inference.model_validate(
        {"structured_outputs": {"grammar": "root ::= ("}, "max_tokens": 4}
    )

    desk = answer(
        engine,
        request_of(engine, 0, "Hello"),
        request_of(engine, 1, "word " * 3000),
        request_of(engine, 2, "Hello", bad_form),
        request_of(engine, 3, "Hello", adapter="nobody"),
        request_of(engine, 4, "Hello"),
    )

    assert desk.done.keys() == {0, 4}
    assert "leaves no room" in desk.failed[1]
    assert "grammar" in desk.failed[2].lower()
    assert "no adapter is called 'nobody'" in desk.failed[3]


def test_a_cancelled_run_leaves_the_engine_usable(engine: VllmEngine) -> None:
    desk = Desk(cancelled=lambda: len(desk.done) > 3)
    endless = Inference(temperature=0, max_tokens=200, ignore_eos=True)
    prompts = questions(400)

    with pytest.raises(TaskCancelled):
        engine.run(
            (
                request_of(engine, index, prompt, GREEDY if index < 8 else endless)
                for index, prompt in enumerate(prompts)
            ),
            desk.replies(),
        )

    assert len(desk.done) < 400
    assert not engine.llm.has_unfinished_requests()
    assert answer(engine, request_of(engine, 0, "Hello")).done.keys() == {0}


def test_an_error_of_the_receiver_leaves_the_engine_usable(engine: VllmEngine) -> None:
    def full(request: EngineRequest, completion: Completion) -> None:
        raise OSError("no space left")

    replies = Replies(full, lambda request, reason: None, lambda: False, lambda line: None)
    with pytest.raises(OSError, match="no space"):
        engine.run(iter([request_of(engine, i, "Hello") for i in range(4)]), replies)

    assert answer(engine, request_of(engine, 0, "Hello")).done.keys() == {0}


def test_the_prefix_cache_shows_in_the_completion(engine: VllmEngine) -> None:
    prompt = " ".join(questions(12))
    answer(engine, request_of(engine, 0, prompt))

    completion = answer(engine, request_of(engine, 0, prompt)).done[0]

    assert 0 < completion.cached_tokens < completion.prompt_tokens


def test_a_seeded_answer_is_the_same_alone_and_among_long_prompts(engine: VllmEngine) -> None:
    hot = Inference(temperature=1.5, max_tokens=24, ignore_eos=True)
    prompts = questions(30, words=150)  # more tokens than one step takes

    together = answer(engine, *(request_of(engine, i, p, hot) for i, p in enumerate(prompts)))
    alone = answer(engine, request_of(engine, 7, prompts[7], hot))

    assert len(together.done) == 30
    assert together.texts()[7] == alone.texts()[7]
    assert not together.lines


def test_threads_take_turns(engine: VllmEngine) -> None:
    desks = [Desk() for _ in range(3)]

    def work(desk: Desk) -> None:
        prompts = enumerate(questions(20))
        engine.run((request_of(engine, i, prompt) for i, prompt in prompts), desk.replies())

    threads = [threading.Thread(target=work, args=(desk,)) for desk in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [len(desk.done) for desk in desks] == [20, 20, 20]
    assert desks[0].texts() == desks[1].texts() == desks[2].texts()


def test_a_row_that_breaks_the_engine_is_found_and_the_others_are_answered(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    requests = [request_of(engine, i, prompt) for i, prompt in enumerate(questions(12))]
    poison = tuple(requests[5].tokens)
    original = CPUModelRunner.execute_model

    def execute_model(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        for new in scheduler_output.scheduled_new_reqs:
            if tuple(new.prompt_token_ids) == poison:
                raise RuntimeError("index out of range in self")
        return original(self, scheduler_output, *args, **kwargs)

    before = answer(engine, *requests)
    monkeypatch.setattr(CPUModelRunner, "execute_model", execute_model)
    desk = answer(engine, *requests)

    assert desk.failed.keys() == {5}
    assert "breaks the engine (RuntimeError: index out of range" in desk.failed[5]
    assert desk.texts() == {i: text for i, text in before.texts().items() if i != 5}
    assert any("the engine broke down with 12 rows in it" in line for line in desk.lines)
    assert any("row 5 breaks the engine" in line for line in desk.lines)


def test_a_bad_value_is_one_clear_error() -> None:
    with pytest.raises(TerminalError, match=r"vLLM refuses model\.vllm: .*gpu_memory_utilization"):
        load_engine(small_spec(vllm={"gpu_memory_utilization": 7}))
    with pytest.raises(TerminalError, match=r"no engine argument 'max_num_seq'.*'max_num_seqs'"):
        load_engine(small_spec(vllm={"max_num_seq": 7}))


def test_models_that_do_not_fit_together_take_turns_and_give_their_memory_back(
    engine: VllmEngine, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    twin = shutil.copytree(builtin_model_path("tiny-chat"), tmp_path / "twin")
    large = {"kv_cache_memory_bytes": 3 * CACHE_BYTES}
    first = small_spec(vllm=large)
    second = small_spec({"type": "local", "identifier": str(twin)}, vllm=large)
    executor = InferenceExecutor()
    cache = ModelCache(None, capacity_bytes=4 * CACHE_BYTES)
    process = psutil.Process()
    before = process.memory_info().rss
    seen: list[int] = []

    for spec in (first, second, first, second):
        with cache.lease(executor, spec) as model:
            assert isinstance(model, VllmEngine)
            assert len(answer(model, request_of(model, 0, "Hello")).done) == 1
            assert cache.keys() == (executor.model_key(spec),)
            assert model.size_bytes > 3 * CACHE_BYTES
            seen.append(process.memory_info().rss - before)
    cache.clear()
    left = process.memory_info().rss - before

    assert max(seen) < 4.5 * CACHE_BYTES  # one at a time
    assert left < CACHE_BYTES
    # The engine that lived beside them is still there.
    assert answer(engine, request_of(engine, 0, "Hello")).done.keys() == {0}
    assert capfd.readouterr().err == ""


def test_two_models_that_fit_work_side_by_side(engine: VllmEngine) -> None:
    other = load_engine(small_spec(vllm={"max_num_seqs": 4}))
    try:
        requests = [request_of(engine, i, prompt) for i, prompt in enumerate(questions(6))]
        assert answer(engine, *requests).texts() == answer(other, *requests).texts()
    finally:
        other.close()

    assert answer(engine, request_of(engine, 0, "Hello")).done.keys() == {0}


class Unbound:
    """As `flask.current_app` outside of a request: even asking it for a name is an error."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("Working outside of application context.")


def test_an_engine_starts_beside_modules_that_cannot_be_looked_through(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    web = ModuleType("web_framework")
    web.current_app = Unbound()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, web.__name__, web)

    other = load_engine(small_spec(vllm={"max_num_seqs": 4}))
    try:
        there = answer(engine, request_of(engine, 0, "Hello")).texts()
        assert answer(other, request_of(other, 0, "Hello")).texts() == there
    finally:
        other.close()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    folders: list[Path] = []
    for number in range(2):
        base = AutoModelForCausalLM.from_pretrained(str(builtin_model_path("tiny-chat")))
        config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = peft.get_peft_model(base, config)
        torch.manual_seed(number)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=1.0)
        folder = tmp_path_factory.mktemp("adapters") / f"voice-{number}"
        model.save_pretrained(str(folder))
        folders.append(folder)
    return folders


def test_rows_choose_among_adapters(engine: VllmEngine, adapters: list[Path]) -> None:
    served = load_engine(
        small_spec(adapters=[{"path": str(each), "apply": "request"} for each in adapters])
    )
    names = [None, "voice-0", "voice-1"]
    try:
        done = answer(
            served,
            *(request_of(served, i, "Hello", LIKELY, name) for i, name in enumerate(names)),
        ).done
    finally:
        served.close()
    without = answer(engine, request_of(engine, 0, "Hello", LIKELY)).done[0]

    assert len({first_logprob(each) for each in done.values()}) == 3
    assert first_logprob(done[0]) == pytest.approx(first_logprob(without), abs=1e-3)


def test_a_single_adapter_answers_every_row(engine: VllmEngine, adapters: list[Path]) -> None:
    served = load_engine(small_spec(adapters=[{"path": str(adapters[0])}]))
    try:
        done = answer(served, request_of(served, 0, "Hello", LIKELY)).done[0]
    finally:
        served.close()
    without = answer(engine, request_of(engine, 0, "Hello", LIKELY)).done[0]

    assert abs(first_logprob(done) - first_logprob(without)) > 1e-3


def test_several_adapters_are_merged_once(
    adapters: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mloc_dagster.executors.engines.vllm import requests as vllm_adapters
    from mloc_dagster.settings import Settings

    monkeypatch.setattr(vllm_adapters, "settings", lambda: Settings(home=tmp_path))
    spec = small_spec(adapters=[{"path": str(each)} for each in adapters])
    for _ in range(2):
        merged = load_engine(spec)
        try:
            assert len(answer(merged, request_of(merged, 0, "Hello")).done) == 1
        finally:
            merged.close()

    (folder,) = (tmp_path / "merged").iterdir()
    assert (folder / "config.json").is_file()
