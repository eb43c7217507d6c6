from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.errors import MissingExtraError, NoRoomError, TerminalError, TransientError
from mloc_dagster.executors.base import ModelKey
from mloc_dagster.executors.engines.vllm import process, start as vllm_start
from mloc_dagster.executors.engines.vllm.process import SMALL_WEIGHTS_BYTES, engine_threads
from mloc_dagster.executors.engines.vllm.start import (
    CPU_CACHE_BYTES,
    EnginePlan,
    plan_engine,
    start_engine,
)
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.settings import Settings


def plan(place: Path, gpus: int = 0, **vllm: Any) -> EnginePlan:
    spec = InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {"source": {"type": "local", "identifier": str(place)}, "vllm": vllm},
            "resources": {"hardware": {"gpu": {"count": gpus}}},
            "data": {"type": "list", "items": ["x"]},
        }
    )
    return plan_engine(spec, runner="generate")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"dtype": "float32"}))
    return tmp_path


@pytest.fixture
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_start, "vllm_build", lambda: request.param)


@pytest.mark.parametrize("build", ["cpu"], indirect=True)
@pytest.mark.usefixtures("build")
class TestOnACpu:
    def test_the_template_goes_before_our_defaults(self, folder: Path) -> None:
        ours = plan(folder).arguments
        theirs = plan(folder, kv_cache_memory_bytes=7, enforce_eager=False, dtype="auto").arguments

        assert ours["kv_cache_memory_bytes"] == CPU_CACHE_BYTES
        assert ours["enforce_eager"] is True
        assert ours["dtype"] == "float32"
        assert ours["runner"] == "generate"
        assert theirs["kv_cache_memory_bytes"] == 7
        assert theirs["enforce_eager"] is False
        assert theirs["dtype"] == "auto"

    def test_gpu_parallelism_is_left_out_and_noted(self, folder: Path) -> None:
        made = plan(folder, tensor_parallel_size=2, pipeline_parallel_size=1)

        assert "tensor_parallel_size" not in made.arguments
        assert made.notes == (
            "model.vllm.tensor_parallel_size: 2 is for GPUs; on this CPU one process does the work",
        )

    def test_code_from_the_weights_needs_the_operators_word(self, folder: Path) -> None:
        with pytest.raises(TerminalError, match="MLOC_TRUST_REMOTE_CODE"):
            plan(folder, trust_remote_code=True)

    def test_a_step_has_room_for_any_prompt_unless_the_template_says_how_much(
        self, folder: Path
    ) -> None:
        assert plan(folder).arguments["enable_chunked_prefill"] is False
        limited = plan(folder, max_num_batched_tokens=512)
        assert "enable_chunked_prefill" not in limited.arguments
        assert limited.given == {"max_num_batched_tokens": 512}

    def test_a_folder_without_a_model_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(TerminalError, match=r"has no config\.json"):
            plan(tmp_path)


@pytest.mark.parametrize("build", ["cuda"], indirect=True)
@pytest.mark.usefixtures("build")
class TestOnGpus:
    @pytest.fixture(autouse=True)
    def _four_gpus(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    def test_the_model_is_spread_over_the_gpus_that_the_task_asks_for(self, folder: Path) -> None:
        assert plan(folder).arguments["tensor_parallel_size"] == 1
        assert plan(folder, gpus=4).arguments["tensor_parallel_size"] == 4
        halves = plan(folder, gpus=4, pipeline_parallel_size=2).arguments
        assert (halves["tensor_parallel_size"], halves["pipeline_parallel_size"]) == (2, 2)

    def test_more_than_the_worker_has_is_refused(self, folder: Path) -> None:
        with pytest.raises(TerminalError, match=r"wants 8 GPUs .*× .*this worker has 4"):
            plan(folder, tensor_parallel_size=4, pipeline_parallel_size=2)

    def test_memory_is_left_to_vllm(self, folder: Path) -> None:
        arguments = plan(folder).arguments

        assert not arguments.keys() & {"kv_cache_memory_bytes", "enforce_eager", "dtype"}


@pytest.mark.parametrize("build", [None], indirect=True)
@pytest.mark.usefixtures("build")
def test_without_vllm_the_extra_is_named(folder: Path) -> None:
    with pytest.raises(MissingExtraError, match="vllm"):
        plan(folder)


def test_threads_are_the_users_else_this_workers_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(process, "settings", lambda: Settings(machine_share=2))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    assert engine_threads(SMALL_WEIGHTS_BYTES) == 4
    assert engine_threads(1000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert engine_threads(SMALL_WEIGHTS_BYTES) is None


@pytest.fixture
def engine_args(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], object]], None]:
    """Stands in for vLLM's engine, which is started in the way that a test gives."""
    pytest.importorskip("torch")
    monkeypatch.setattr(vllm_start, "prepare_environment", lambda: None)
    monkeypatch.setattr(vllm_start, "vllm_build", lambda: "cuda")
    monkeypatch.setattr(vllm_start, "announce", lambda llm: llm)

    class EngineArgs:
        __dataclass_fields__ = ("model",)

        def __init__(self, model: str) -> None:
            self.model = model

    def starts_by(start: Callable[[str], object]) -> None:
        engine = SimpleNamespace(from_engine_args=lambda given, **_: start(given.model))
        monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(EngineArgs=EngineArgs))
        monkeypatch.setitem(
            sys.modules,
            "vllm.usage.usage_lib",
            SimpleNamespace(UsageContext=SimpleNamespace(LLM_CLASS="llm")),
        )
        monkeypatch.setitem(
            sys.modules, "vllm.v1.engine.llm_engine", SimpleNamespace(LLMEngine=engine)
        )

    return starts_by


class Starter:
    """Starts one engine for each model, as the inference executor does."""

    def __init__(self) -> None:
        self.loaded: list[Any] = []

    def model_key(self, spec: str) -> ModelKey:
        return ModelKey("vllm", spec)

    def load(self, spec: str) -> Any:
        source = SimpleNamespace(type="local", identifier=spec, revision=None)
        llm = start_engine(EnginePlan(source, spec, {"model": spec}))  # type: ignore[arg-type]
        self.loaded.append(llm)
        return llm

    def unload(self, model: Any) -> None:
        self.loaded.remove(model)

    def run(self, *_: Any) -> None:
        raise NotImplementedError


CORE_FAILED = (
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'core': 1}"
)


def test_a_model_that_idles_makes_room_for_one_whose_process_did_not_start(
    engine_args: Callable[..., None],
) -> None:
    starter, cache = Starter(), ModelCache(None)

    def start(model: str) -> object:
        if starter.loaded:
            raise RuntimeError(CORE_FAILED)  # the memory of one: its process could not say more
        return model

    engine_args(start)
    for name in ("first", "second", "first"):
        with cache.lease(starter, name) as model:
            assert starter.loaded == [model] == [name]


def test_a_process_that_does_not_start_by_itself_either_may_be_tried_again(
    engine_args: Callable[..., None],
) -> None:
    def start(model: str) -> object:
        raise RuntimeError(CORE_FAILED)

    engine_args(start)
    with (
        pytest.raises(NoRoomError, match="its process ended, for want of memory or") as caught,
        ModelCache(None).lease(Starter(), "only"),
    ):
        pass

    assert caught.value.retryable


def test_another_failure_evicts_nobody(engine_args: Callable[..., None]) -> None:
    starter, cache = Starter(), ModelCache(None)

    def start(model: str) -> object:
        if model == "second":
            raise RuntimeError("Frontend process failed during engine core initialization.")
        return model

    engine_args(start)
    with cache.lease(starter, "first"):
        pass
    with pytest.raises(TransientError, match="Frontend process failed") as caught:  # noqa: SIM117
        with cache.lease(starter, "second"):
            pass

    assert not isinstance(caught.value, MemoryError)
    assert starter.loaded == ["first"]
