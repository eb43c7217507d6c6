"""Models that left their device and wait in main memory for their next use."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from mloc_dagster.executors.base import ChecksModels, ModelKey, SleepsModels, TaskExecutor

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
