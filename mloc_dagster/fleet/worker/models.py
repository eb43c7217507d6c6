"""The models of this process: one cache, as large as its settings and its machine allow."""

from __future__ import annotations

from functools import cache

import psutil

from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.fleet.worker.detection import memory_limit
from mloc_dagster.settings import Settings, settings

_SLEEPING_PART = 4  # of the memory: the rest is for loading, rows, pictures and the page cache


@cache
def process_model_cache() -> ModelCache:
    """Returns this process's cache, sized by `MLOC_MAX_CACHED_MODELS` and `MLOC_CACHE_BYTES`.

    With a limit of bytes alone, any number of models is kept that fits.
    """
    limits = settings()
    by_bytes_alone = limits.cache_bytes and "max_cached_models" not in limits.model_fields_set
    return ModelCache(
        None if by_bytes_alone else limits.max_cached_models,
        limits.cache_bytes,
        sleeping_bytes=_sleeping_bytes(limits),
    )


def _sleeping_bytes(limits: Settings) -> int:
    if limits.sleeping_bytes is not None:
        return limits.sleeping_bytes
    memory = min(psutil.virtual_memory().total, memory_limit() or 1 << 62)
    return memory // _SLEEPING_PART // limits.machine_share
