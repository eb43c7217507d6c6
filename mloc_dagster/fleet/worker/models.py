"""The model cache of a process, and of whoever has one of their own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import psutil

from mloc_dagster.executors import ModelCache
from mloc_dagster.fleet.worker.detection import memory_limit
from mloc_dagster.settings import Settings, settings

_SLEEPING_PART = 4  # of the memory: the rest is for loading, rows, pictures and the page cache


@cache
def process_model_cache() -> ModelCache:
    """Returns this process's cache, sized by the settings."""
    return new_model_cache()


_lent: ContextVar[ModelCache | None] = ContextVar("model_cache", default=None)


def model_cache() -> ModelCache:
    """Returns the cache for the work of this thread: that of `models_in`, else the process's."""
    return _lent.get() or process_model_cache()


@contextmanager
def models_in(cache: ModelCache) -> Generator[None]:
    """Has the work of this thread keep its models in a cache until the block ends."""
    token = _lent.set(cache)
    try:
        yield
    finally:
        _lent.reset(token)


def new_model_cache(max_models: int | None = None) -> ModelCache:
    """Returns an empty cache.

    Args:
        max_models: Models that it keeps at most; by default what `MLOC_MAX_CACHED_MODELS` and
            `MLOC_CACHE_BYTES` say. With a limit of bytes alone, any number is kept that fits.
    """
    limits = settings()
    by_bytes_alone = limits.cache_bytes and "max_cached_models" not in limits.model_fields_set
    return ModelCache(
        max_models or (None if by_bytes_alone else limits.max_cached_models),
        limits.cache_bytes,
        sleeping_bytes=_sleeping_bytes(limits),
    )


def _sleeping_bytes(limits: Settings) -> int:
    if limits.sleeping_bytes is not None:
        return limits.sleeping_bytes
    memory = min(psutil.virtual_memory().total, memory_limit() or 1 << 62)
    return memory // _SLEEPING_PART // limits.machine_share
