"""Models that make room sleep where they can, are woken instead of loaded, and are never stale."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mloc_dagster.executors.base import ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.engines.vllm.engine import can_sleep
from mloc_dagster.executors.engines.vllm.start import _drop_sleep_mode
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.fleet import process_model_cache
from mloc_dagster.fleet.worker import models as process_models
from mloc_dagster.settings import settings

SLEEPER_BYTES = 10


class Sleepy:
    """Models are strings; those whose name begins with "x" cannot sleep."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.outdated: set[str] = set()
        self.wakes = True
        self.out_of_memory = 0
        self.falling_asleep: Callable[[str], object] = lambda model: None

    def model_key(self, spec: str) -> ModelKey | None:
        return ModelKey("sleepy", spec, spec)

    def load(self, spec: str) -> str:
        if self.out_of_memory:
            self.out_of_memory -= 1
            raise MemoryError
        self.said.append(f"load {spec}")
        self.outdated.discard(spec)
        return spec

    def unload(self, model: str) -> None:
        self.said.append(f"unload {model}")

    def run(self, shard: ShardInput, spec: str, model: str, context: ShardContext) -> None:
        raise NotImplementedError

    def is_current(self, model: str, spec: str) -> bool:
        assert model == spec
        return model not in self.outdated

    def asleep_bytes(self, model: str) -> int | None:
        return None if model.startswith("x") else SLEEPER_BYTES

    def sleep(self, model: str) -> None:
        self.falling_asleep(model)
        self.said.append(f"sleep {model}")

    def wake(self, model: str) -> None:
        if not self.wakes:
            raise RuntimeError("no room on the device")
        self.said.append(f"wake {model}")


def use(cache: ModelCache, executor: Sleepy, *specs: str) -> None:
    for spec in specs:
        with cache.lease(executor, spec) as model:
            assert model == spec


def test_a_model_that_makes_room_sleeps_and_is_woken() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b", "a")
    assert executor.said == ["load a", "sleep a", "load b", "sleep b", "wake a"]


def test_without_memory_for_sleepers_none_sleeps() -> None:
    cache, executor = ModelCache(1), Sleepy()
    use(cache, executor, "a", "b")
    assert executor.said == ["load a", "unload a", "load b"]


def test_what_cannot_sleep_is_unloaded() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "x", "b")
    assert executor.said == ["load x", "unload x", "load b"]


def test_the_sleeper_that_was_used_longest_ago_gives_way() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=2 * SLEEPER_BYTES), Sleepy()
    use(cache, executor, "a", "b", "c", "d")
    # Main memory never holds more than it may, not even while the next one falls asleep.
    assert executor.said.index("unload a") < executor.said.index("sleep c")
    use(cache, executor, "b")
    assert executor.said[-1] == "wake b"


def test_what_is_larger_than_all_memory_for_sleepers_does_not_sleep() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=SLEEPER_BYTES - 1), Sleepy()
    use(cache, executor, "a", "b")
    assert executor.said == ["load a", "unload a", "load b"]


def test_what_was_loaded_again_while_it_fell_asleep_is_asleep_once() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a")

    def meanwhile(model: str) -> None:
        executor.falling_asleep = lambda model: None
        use(cache, executor, "a")  # as another thread would

    executor.falling_asleep = meanwhile
    use(cache, executor, "b")
    cache.clear()
    loads, unloads = (
        sum(line.startswith(word) for line in executor.said) for word in ("load", "unload")
    )
    assert loads == unloads


def test_a_sleeper_that_does_not_wake_is_loaded_again(caplog: pytest.LogCaptureFixture) -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b")
    executor.wakes = False
    use(cache, executor, "a")
    assert executor.said[-2:] == ["unload a", "load a"]
    assert "does not wake" in caplog.text


def test_when_memory_is_out_sleepers_go_too() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b")
    executor.out_of_memory = 1
    use(cache, executor, "c")
    assert {"unload a", "unload b"} <= set(executor.said)
    assert executor.said[-1] == "load c"


def test_clearing_and_evicting_leave_no_sleeper() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b", "c")
    cache.evict(ModelKey("sleepy", "a"))
    assert "unload a" in executor.said
    cache.clear()
    assert {"unload b", "unload c"} <= set(executor.said)


def test_sleepers_count_as_warm() -> None:
    heard: list[tuple[ModelKey, ...]] = []
    cache, executor = ModelCache(1, on_change=heard.append, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b")
    assert [key.identity for key in heard[-1]] == ["a", "b"]
    cache.clear()
    assert heard[-1] == ()


def test_a_model_whose_files_changed_is_loaded_again() -> None:
    cache, executor = ModelCache(2), Sleepy()
    use(cache, executor, "a")
    executor.outdated.add("a")
    use(cache, executor, "a", "a")
    assert executor.said == ["load a", "unload a", "load a"]


def test_who_leases_an_outdated_model_keeps_it_to_the_end() -> None:
    cache, executor = ModelCache(2), Sleepy()
    with cache.lease(executor, "a"):
        executor.outdated.add("a")
        use(cache, executor, "a")
        assert executor.said == ["load a", "load a"]
    assert executor.said == ["load a", "load a", "unload a"]
    use(cache, executor, "a")
    assert executor.said[-1] == "unload a"  # the new one is still there


def test_an_outdated_sleeper_is_loaded_again() -> None:
    cache, executor = ModelCache(1, sleeping_bytes=100), Sleepy()
    use(cache, executor, "a", "b")
    executor.outdated.add("a")
    use(cache, executor, "a")
    assert executor.said[-2:] == ["unload a", "load a"]


def test_the_process_cache_knows_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_SLEEPING_BYTES", "0")
    settings.cache_clear()
    process_model_cache.cache_clear()
    executor = Sleepy()
    try:
        use(process_model_cache(), executor, "a", "b")
    finally:
        monkeypatch.undo()
        settings.cache_clear()
        process_model_cache.cache_clear()
    assert "unload a" in executor.said


def test_by_default_sleepers_have_a_quarter_of_what_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a container that is the container's limit, not the machine's memory."""
    monkeypatch.setenv("MLOC_MACHINE_SHARE", "2")
    settings.cache_clear()
    for limit, asleep in ((8 * SLEEPER_BYTES, "sleep a"), (8 * SLEEPER_BYTES - 8, "unload a")):
        monkeypatch.setattr(process_models, "memory_limit", lambda limit=limit: limit)
        process_model_cache.cache_clear()
        executor = Sleepy()
        use(process_model_cache(), executor, "a", "b")
        assert executor.said == ["load a", asleep, "load b"]
    process_model_cache.cache_clear()


def test_sleep_mode_is_vllms_own_option_and_dropped_with_a_word_where_it_is_not() -> None:
    assert can_sleep({"enable_sleep_mode": True})
    assert not can_sleep({})
    given = {"enable_sleep_mode": True, "max_model_len": 8}
    (note,) = _drop_sleep_mode(given)
    assert "enable_sleep_mode is for GPUs" in note
    assert given == {"max_model_len": 8}
    assert _drop_sleep_mode(given) == ()
