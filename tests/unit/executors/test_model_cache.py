"""The model cache: one load per key, least recently used out first, never under a lease."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput, model_key_text
from mloc_dagster.executors.inference import InferenceExecutor
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.fleet import process_model_cache
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema import InferenceSpec
from mloc_dagster.settings import settings


class Recorder:
    """Loads strings; a spec is its own key, and the spec "none" has no key."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.unloaded: list[str] = []
        self.may_load = threading.Event()
        self.may_load.set()
        self.failures: list[Exception] = []

    def model_key(self, spec: str) -> ModelKey | None:
        return None if spec == "none" else ModelKey("recorder", spec)

    def load(self, spec: str) -> str:
        self.loaded.append(spec)
        assert self.may_load.wait(10)
        if self.failures:
            raise self.failures.pop()
        return f"model {spec}"

    def unload(self, model: str) -> None:
        self.unloaded.append(model)

    def run(self, shard: ShardInput, spec: str, model: str, context: ShardContext) -> None:
        raise NotImplementedError


def names(cache: ModelCache) -> list[str]:
    return [key.identity for key in cache.keys()]  # noqa: SIM118 - not a mapping


def use(cache: ModelCache, executor: Recorder, spec: str) -> None:
    with cache.lease(executor, spec) as model:
        assert model == f"model {spec}"


def test_a_model_is_loaded_once_and_stays() -> None:
    cache, executor = ModelCache(2), Recorder()
    use(cache, executor, "a")
    use(cache, executor, "a")
    assert executor.loaded == ["a"]
    assert executor.unloaded == []


def test_the_least_recently_used_goes_before_the_new_one_is_loaded() -> None:
    cache, executor = ModelCache(2), Recorder()
    for spec in ("a", "b", "a", "c"):
        use(cache, executor, spec)
    assert executor.unloaded == ["model b"]
    assert names(cache) == ["a", "c"]


def test_a_leased_model_is_never_unloaded() -> None:
    cache, executor = ModelCache(1), Recorder()
    with cache.lease(executor, "a"):
        use(cache, executor, "b")
        cache.clear()
        assert executor.unloaded == ["model b"]
        assert not cache.evict(ModelKey("recorder", "a"))
    assert executor.unloaded == ["model b", "model a"]
    assert names(cache) == []


def test_threads_that_want_the_same_model_share_one_load() -> None:
    cache, executor = ModelCache(1), Recorder()
    executor.may_load.clear()
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(use, cache, executor, "a") for _ in range(8)]
        executor.may_load.set()
        for each in waiting:
            each.result(timeout=10)
    assert executor.loaded == ["a"]


def test_a_failed_load_is_raised_and_tried_again_next_time() -> None:
    cache, executor = ModelCache(1), Recorder()
    executor.failures = [OSError("no such weights")]
    with pytest.raises(OSError, match="no such weights"):
        use(cache, executor, "a")
    assert names(cache) == []
    use(cache, executor, "a")
    assert executor.loaded == ["a", "a"]


def test_a_model_without_a_key_is_unloaded_at_once() -> None:
    cache, executor = ModelCache(1), Recorder()
    use(cache, executor, "none")
    assert executor.unloaded == ["model none"]
    assert names(cache) == []


def test_evict_frees_a_model_that_nobody_leases() -> None:
    cache, executor = ModelCache(1), Recorder()
    use(cache, executor, "a")
    assert cache.evict(ModelKey("recorder", "a"))
    assert executor.unloaded == ["model a"]


def test_a_cache_for_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        ModelCache(0)


class Measured(Recorder):
    """Models of one byte for each letter of their spec."""

    def model_bytes(self, model: str) -> int:
        return len(model.removeprefix("model "))


def test_bytes_are_kept_within_the_capacity_least_recently_used_out_first() -> None:
    cache, executor = ModelCache(None, capacity_bytes=6), Measured()
    for spec in ("aa", "bb", "cc", "aa", "dddd"):
        use(cache, executor, spec)
    assert executor.unloaded == ["model bb", "model cc"]
    assert names(cache) == ["aa", "dddd"]


def test_room_is_made_before_a_model_of_known_size_is_loaded() -> None:
    cache, executor = ModelCache(None, capacity_bytes=6), Measured()
    for spec in ("aaaa", "bbbb", "aaaa"):
        use(cache, executor, spec)
    executor.failures = [OSError("the disk is away")]
    with pytest.raises(OSError, match="the disk is away"):
        use(cache, executor, "bbbb")
    assert executor.unloaded == ["model aaaa", "model bbbb", "model aaaa"]
    assert names(cache) == []


def test_a_leased_model_may_exceed_the_capacity_until_its_lease_ends() -> None:
    cache, executor = ModelCache(None, capacity_bytes=3), Measured()
    use(cache, executor, "a")
    with cache.lease(executor, "bbbbb"):
        assert names(cache) == ["bbbbb"]
        use(cache, executor, "cc")
        assert names(cache) == ["bbbbb"]
    assert names(cache) == []


@pytest.mark.parametrize("error", [MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})()])
def test_a_load_that_runs_out_of_memory_gets_what_idle_models_held(error: Exception) -> None:
    cache, executor = ModelCache(3), Recorder()
    use(cache, executor, "idle")
    with cache.lease(executor, "leased"):
        executor.failures = [error]
        use(cache, executor, "new")
        assert executor.unloaded == ["model idle"]
        assert executor.loaded == ["idle", "leased", "new", "new"]
        executor.failures = [error, error]
        with pytest.raises(type(error)):
            use(cache, executor, "newer")
    assert names(cache) == ["leased"]


def test_changes_of_what_is_warm_are_told() -> None:
    told: list[list[str]] = []
    executor = Recorder()
    cache = ModelCache(1, on_change=lambda keys: told.append([key.identity for key in keys]))
    use(cache, executor, "a")
    use(cache, executor, "a")
    use(cache, executor, "b")
    executor.failures = [OSError("no such weights")]
    with pytest.raises(OSError, match="no such weights"):
        use(cache, executor, "c")
    assert told == [["a"], [], ["b"], []]


def test_a_key_reads_the_same_in_every_process() -> None:
    key = ModelKey("transformers", '{"source": "größe"}', name="tiny-chat")
    code = (
        "from mloc_dagster.executors.base import ModelKey, model_key_text as text\n"
        f"print(text({key!r}))"
    )
    other = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"},
    )
    assert model_key_text(key) == other.stdout.strip()
    assert model_key_text(key).startswith("transformers:tiny-chat@")
    assert model_key_text(key) != model_key_text(ModelKey("transformers", "{}", name="tiny-chat"))
    assert key == ModelKey(key.engine, key.identity)


@pytest.mark.parametrize(
    ("environment", "kept"),
    [
        ({}, ["c"]),
        ({"MLOC_CACHE_BYTES": "100"}, ["a", "b", "c"]),
        ({"MLOC_CACHE_BYTES": "2"}, ["b", "c"]),
        ({"MLOC_CACHE_BYTES": "100", "MLOC_MAX_CACHED_MODELS": "2"}, ["b", "c"]),
    ],
)
def test_the_process_has_one_cache_sized_by_its_settings(
    environment: dict[str, str], kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings.cache_clear()
    process_model_cache.cache_clear()
    cache, executor = process_model_cache(), Measured()
    for spec in ("a", "b", "c"):
        use(cache, executor, spec)
    assert names(cache) == kept
    assert process_model_cache() is cache
    process_model_cache.cache_clear()


def test_the_memory_of_an_evicted_model_is_really_free() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")

    executor = InferenceExecutor()
    place = str(builtin_model_path("tiny-chat"))
    specs = [
        InferenceSpec.model_validate(
            {
                "taskType": "inference",
                "model": {
                    "source": {"type": "local", "identifier": place},
                    "transformers": {"dtype": "float32", "attn_implementation": attention},
                },
                "data": {"type": "list", "items": ["hello"]},
                "enforce_cpu": True,
            }
        )
        for attention in ("eager", "sdpa")
    ]
    keys = [executor.model_key(spec) for spec in specs]
    with ModelCache(1).lease(executor, specs[0]) as model:
        weights = sum(
            each.numel() * each.element_size() for each in model.loaded.model.parameters()
        )
        assert executor.model_bytes(model) >= weights > 0
    cache = ModelCache(None, capacity_bytes=int(1.5 * weights))  # either one, never both

    traces: list[weakref.ref[object]] = []
    for turn in (0, 1, 0, 1):
        with cache.lease(executor, specs[turn]) as model:
            parameter = next(model.loaded.model.parameters())
            traces += [weakref.ref(model.loaded.model), weakref.ref(parameter)]
            assert isinstance(parameter, torch.Tensor)
        del model, parameter
        assert cache.keys() == (keys[turn],)
        assert [trace() is None for trace in traces] == [True] * (len(traces) - 2) + [False] * 2
    cache.clear()
    assert [trace() for trace in traces] == [None] * len(traces)


def test_a_model_that_was_trained_again_in_its_folder_is_loaded_again(tmp_path: Path) -> None:
    folder = shutil.copytree(builtin_model_path("tiny-chat"), tmp_path / "model")
    spec = InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {
                "source": {"type": "local", "identifier": str(folder)},
                "engine": "transformers",
            },
            "data": {"type": "list", "items": ["x"]},
        }
    )
    cache, executor = ModelCache(1), InferenceExecutor()
    with cache.lease(executor, spec) as first:
        pass
    with cache.lease(executor, spec) as again:
        assert again is first
    before = first.revision
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor * 0.5 for name, tensor in weights.items()}, folder / "model.safetensors"
    )

    with cache.lease(executor, spec) as trained:
        assert trained is not first
        assert trained.revision != before
    cache.clear()
