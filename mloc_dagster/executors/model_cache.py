"""Models that stay loaded between the shards of one process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mloc_dagster.executors.base import ModelKey, TaskExecutor
from mloc_dagster.settings import settings


@dataclass(slots=True)
class _Entry:
    executor: TaskExecutor[Any, Any]
    leases: int = 1
    model: Any = None
    failed: bool = False
    doomed: bool = False
    ready: threading.Event = field(default_factory=threading.Event)


class ModelCache:
    """Keeps the most recently used models loaded, at most `max_models` of them.

    Safe under threads: two that want the same model wait for one load. A leased model is never
    unloaded, so more than `max_models` stay loaded while more than that are leased at once.

    Args:
        max_models: How many models to keep.
    """

    def __init__(self, max_models: int) -> None:
        if max_models < 1:
            raise ValueError(f"max_models must be at least 1, not {max_models}")
        self._max_models = max_models
        self._entries: OrderedDict[ModelKey, _Entry] = OrderedDict()
        self._lock = threading.Lock()

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
        self._trim()
        with self._lock:
            return key not in self._entries

    def clear(self) -> None:
        """Unloads every model that is not leased; leased ones follow when their lease ends."""
        for key in self.keys():
            self.evict(key)

    def keys(self) -> tuple[ModelKey, ...]:
        """Returns what is loaded or being loaded, least recently used first."""
        with self._lock:
            return tuple(self._entries)

    def _acquire(self, key: ModelKey, executor: TaskExecutor[Any, Any], spec: object) -> _Entry:
        while True:
            with self._lock:
                entry = self._entries.get(key)
                first = entry is None
                if entry is None:
                    entry = self._entries[key] = _Entry(executor)
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

    def _load(self, key: ModelKey, entry: _Entry, spec: object) -> None:
        try:
            self._trim()  # before loading: the memory of both may not be there
            entry.model = entry.executor.load(spec)
        except BaseException:
            with self._lock:
                entry.failed = True
                del self._entries[key]
            raise
        finally:
            entry.ready.set()

    def _release(self, entry: _Entry) -> None:
        with self._lock:
            entry.leases -= 1
        self._trim()

    def _trim(self) -> None:
        for entry in self._take_surplus():
            entry.executor.unload(entry.model)

    def _take_surplus(self) -> list[_Entry]:
        taken: list[_Entry] = []
        with self._lock:
            for key, entry in list(self._entries.items()):
                surplus = len(self._entries) > self._max_models
                if entry.leases == 0 and (surplus or entry.doomed):
                    taken.append(self._entries.pop(key))
        return taken


@cache
def process_model_cache() -> ModelCache:
    """Returns this process's cache, sized by `MLOC_MAX_CACHED_MODELS`."""
    return ModelCache(settings().max_cached_models)
