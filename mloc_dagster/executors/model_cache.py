"""Models that stay loaded between shards, on their device or asleep in main memory."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from mloc_dagster.executors.base import (
    ChecksModels,
    ModelKey,
    SizesModels,
    SleepsModels,
    TaskExecutor,
)


def weights_bytes(model: Any) -> int:
    """Returns the bytes of a torch module's parameters and buffers; shared ones count once."""
    tensors = chain(model.parameters(), model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def release_memory() -> None:
    """Gives memory of objects that nobody holds any longer back to the GPU and to the machine."""
    gc.collect()  # models are full of cycles
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        # Freed weights otherwise stay with the C library, and the process keeps its size.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A model that sleeps.

    Attributes:
        key: The model.
        executor: Wakes and unloads it.
        model: What it put to sleep.
        size_bytes: Main memory that it holds.
    """

    key: ModelKey
    executor: TaskExecutor[Any, Any]
    model: Any
    size_bytes: int

    def wake(self, spec: object) -> bool:
        """Wakes it; returns False, and unloads it, if it cannot or `spec` means another by now."""
        executor = self.executor
        try:
            current = not isinstance(executor, ChecksModels) or executor.is_current(
                self.model, spec
            )
            if current and isinstance(executor, SleepsModels):
                executor.wake(self.model)
                return True
        except Exception:  # noqa: BLE001  whatever it is, loading the model again is the cure
            _log.exception("model %s does not wake; it is loaded again", self.key.name)
        self.unload()
        return False

    def unload(self) -> None:
        """Frees its memory."""
        self.executor.unload(self.model)


class SleepingModels:
    """Keeps the most recently used sleepers within a number of bytes. Safe under threads.

    Args:
        capacity_bytes: Main memory of all sleepers together; with 0 none sleeps.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._sleepers: OrderedDict[ModelKey, Sleeper] = OrderedDict()
        self._lock = threading.Lock()

    def keys(self) -> tuple[ModelKey, ...]:
        """Returns who sleeps, least recently used first."""
        with self._lock:
            return tuple(self._sleepers)

    def put(self, key: ModelKey, executor: TaskExecutor[Any, Any], model: object) -> bool:
        """Puts a model to sleep that nobody uses; returns whether it sleeps, and is kept here."""
        if not self._capacity_bytes or not isinstance(executor, SleepsModels):
            return False
        try:
            size_bytes = executor.asleep_bytes(model)
            if size_bytes is None or size_bytes > self._capacity_bytes:
                return False
            self._make_room(size_bytes)  # before: the memory of both may not be there
            executor.sleep(model)
        except Exception:  # noqa: BLE001  whatever it is, unloading the model is the cure
            _log.exception("model %s does not sleep; it is unloaded", key.name)
            return False
        # Threads may have loaded the same model again while the first copy fell asleep.
        self.drop(key)
        with self._lock:
            self._sleepers[key] = Sleeper(key, executor, model, size_bytes)
        self._make_room(0)
        return True

    def take(self, key: ModelKey) -> Sleeper | None:
        """Hands a sleeper over, still asleep; None if the model does not sleep here."""
        with self._lock:
            return self._sleepers.pop(key, None)

    def drop(self, key: ModelKey) -> None:
        """Unloads a sleeper, if it is one."""
        if (sleeper := self.take(key)) is not None:
            sleeper.unload()

    def clear(self) -> bool:
        """Unloads all; returns whether there were any."""
        with self._lock:
            sleepers = list(self._sleepers.values())
            self._sleepers.clear()
        for each in sleepers:
            each.unload()
        return bool(sleepers)

    def _make_room(self, size_bytes: int) -> None:
        surplus: list[Sleeper] = []
        with self._lock:
            left = self._capacity_bytes - size_bytes
            while sum(each.size_bytes for each in self._sleepers.values()) > left:
                surplus.append(self._sleepers.popitem(last=False)[1])
        for each in surplus:
            each.unload()


Listener = Callable[[tuple[ModelKey, ...]], None]


@dataclass(slots=True)
class _Entry:
    key: ModelKey
    executor: TaskExecutor[Any, Any]
    leases: int = 1
    size_bytes: int = 0
    model: Any = None
    failed: bool = False
    doomed: bool = False
    ready: threading.Event = field(default_factory=threading.Event)


class ModelCache:
    """Keeps the most recently used models loaded, within a number of models and of bytes.

    Safe under threads: two that want the same model wait for one load. A leased model is never
    unloaded, so more stays loaded than the limits allow while more is leased at once. A model
    that is larger than `capacity_bytes` by itself is unloaded when its last lease ends.

    Room is made before a model is loaded, as far as its size is known from an earlier time, and
    again once it is measured. A load that runs out of memory is tried again with every other
    model unloaded that nobody leases, sleepers too.

    A model that makes room sleeps, where its executor can do that (`SleepsModels`), and is woken
    instead of loaded. One that is no longer what it was loaded from (`ChecksModels`) is replaced:
    who leases the old one keeps it to the end.

    Args:
        max_models: How many models to keep; None for any number.
        capacity_bytes: Bytes of all models together, as `SizesModels` tells them; 0 for no limit.
        on_change: Called with the models at hand, ordered by their keys, when they change:
            those that are loaded, and those that sleep.
        sleeping_bytes: Main memory of all sleepers together; 0 unloads what makes room.
    """

    def __init__(
        self,
        max_models: int | None,
        capacity_bytes: int = 0,
        on_change: Listener | None = None,
        sleeping_bytes: int = 0,
    ) -> None:
        if max_models is not None and max_models < 1:
            raise ValueError(f"max_models must be at least 1, not {max_models}")
        self.on_change = on_change
        self._max_models = max_models
        self._capacity_bytes = capacity_bytes
        self._entries: OrderedDict[ModelKey, _Entry] = OrderedDict()
        self._outdated: list[_Entry] = []  # replaced while somebody leased them
        self._sleeping = SleepingModels(sleeping_bytes)
        self._sizes: dict[ModelKey, int] = {}
        self._lock = threading.Lock()
        self._told: tuple[ModelKey, ...] = ()
        self._reporting = threading.Lock()

    @contextmanager
    def lease[SpecT, ModelT](
        self, executor: TaskExecutor[SpecT, ModelT], spec: SpecT
    ) -> Iterator[ModelT]:
        """Lends the model of `spec`, loaded if need be, for the length of the `with` block."""
        key = executor.model_key(spec)
        if key is None:
            model = executor.load(spec)
            try:
                yield model
            finally:
                executor.unload(model)
            return
        entry = self._acquire(key, executor, spec)
        try:
            yield entry.model
        finally:
            self._release(entry)

    def evict(self, key: ModelKey) -> bool:
        """Unloads a model: now, or when its last lease ends.

        Returns:
            Whether it is out of memory now.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                entry.doomed = True
        self._sleeping.drop(key)
        self._trim()
        with self._lock:
            return key not in self._entries

    def clear(self) -> None:
        """Unloads every model that is not leased; leased ones follow when their lease ends."""
        for key in self.keys():
            self.evict(key)
        self._sleeping.clear()
        self._report()

    def keys(self) -> tuple[ModelKey, ...]:
        """Returns what is loaded or being loaded, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def _acquire(self, key: ModelKey, executor: TaskExecutor[Any, Any], spec: object) -> _Entry:
        self._replace_outdated(key, executor, spec)
        while True:
            with self._lock:
                entry = self._entries.get(key)
                first = entry is None
                if entry is None:
                    entry = self._entries[key] = _Entry(key, executor)
                else:
                    entry.leases += 1
                    self._entries.move_to_end(key)
            if first:
                self._load(key, entry, spec)
                return entry
            entry.ready.wait()
            if not entry.failed:
                return entry
            # The thread that loaded it has met the error; this one makes its own attempt.

    def _replace_outdated(
        self, key: ModelKey, executor: TaskExecutor[Any, Any], spec: object
    ) -> None:
        if not isinstance(executor, ChecksModels):
            return
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or not entry.ready.is_set():
                return
            entry.leases += 1  # it stays while it is looked at
        try:
            current = executor.is_current(entry.model, spec)
            with self._lock:
                if not current and self._entries.get(key) is entry:
                    entry.doomed = True
                    self._outdated.append(self._entries.pop(key))
        finally:
            self._release(entry)

    def _load(self, key: ModelKey, entry: _Entry, spec: object) -> None:
        try:
            with self._lock:
                entry.size_bytes = self._sizes.get(key, 0)
            sleeper = self._sleeping.take(key)
            self._trim()  # before loading: the memory of both may not be there
            if sleeper is not None and sleeper.wake(spec):
                entry.model = sleeper.model
            else:
                entry.model = self._load_with_room(entry.executor, spec)
            size_bytes = _measure(entry)
        except BaseException:
            with self._lock:
                entry.failed = True
                del self._entries[key]
            raise
        finally:
            entry.ready.set()
        with self._lock:
            entry.size_bytes = self._sizes[key] = size_bytes
        self._trim()
        self._report()

    def _load_with_room(self, executor: TaskExecutor[Any, Any], spec: object) -> Any:
        try:
            return executor.load(spec)
        except Exception as error:
            if not _out_of_memory(error):
                raise
            freed = self._unload(self._take_idle(), may_sleep=False)
            if not self._sleeping.clear() and not freed:
                raise
        # Outside of the handler, whose traceback would hold on to what was loaded half.
        return executor.load(spec)

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
        self._trim()

    def _trim(self) -> None:
        self._unload(self._take_surplus())

    def _unload(self, entries: list[_Entry], *, may_sleep: bool = True) -> bool:
        for entry in entries:
            sleeps = may_sleep and not entry.doomed
            if not (sleeps and self._sleeping.put(entry.key, entry.executor, entry.model)):
                entry.executor.unload(entry.model)
        if entries:
            self._report()
        return bool(entries)

    def _take_surplus(self) -> list[_Entry]:
        with self._lock:
            unused = [entry for entry in self._outdated if entry.leases == 0]
            self._outdated = [entry for entry in self._outdated if entry.leases]
            return unused + [
                self._entries.pop(key)
                for key, entry in list(self._entries.items())
                if entry.leases == 0 and (entry.doomed or self._exceeds())
            ]

    def _take_idle(self) -> list[_Entry]:
        with self._lock:
            idle = [key for key, entry in self._entries.items() if entry.leases == 0]
            return [self._entries.pop(key) for key in idle]

    def _exceeds(self) -> bool:
        if self._max_models is not None and len(self._entries) > self._max_models:
            return True
        held = sum(entry.size_bytes for entry in self._entries.values())
        return 0 < self._capacity_bytes < held

    def _report(self) -> None:
        with self._reporting:
            with self._lock:
                loaded = [key for key, entry in self._entries.items() if entry.ready.is_set()]
            at_hand = {*loaded, *self._sleeping.keys()}
            warm = tuple(sorted(at_hand, key=lambda key: (key.engine, key.identity)))
            if warm != self._told:
                self._told = warm
                if self.on_change is not None:
                    self.on_change(warm)


def _measure(entry: _Entry) -> int:
    executor = entry.executor
    return executor.model_bytes(entry.model) if isinstance(executor, SizesModels) else 0


def _out_of_memory(error: Exception) -> bool:
    # torch's class is named so; this module knows no engine.
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
