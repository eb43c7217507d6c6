"""The model cache: one load per key, least recently used out first, never under a lease."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.model_cache import ModelCache


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
