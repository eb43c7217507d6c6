"""What a training needs on its worker before it begins: room, processes, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mloc_dagster.executors.energy import gpu_count
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.results.store import ResultStore
from mloc_dagster.schema.task import TrainingSpec
from mloc_dagster.settings import settings


def make_room(spec: TrainingSpec, cache: ModelCache, log: Callable[[str], None]) -> None:
    """Unloads the worker's warm models where the training needs their memory.

    On GPUs it always does: an engine takes what there is. On a CPU it does when the training's
    estimate does not fit into what is free.

    Args:
        spec: What is trained.
        cache: The worker's models.
        log: Takes a line if models are unloaded.
    """
    if not cache.keys():
        return
    on_gpu = not spec.enforce_cpu and spec.resources.hardware.gpu.count > 0
    if not on_gpu:
        import psutil

        from mloc_dagster.executors.training.model_config import estimate_of

        needed = estimate_of(spec)
        if needed is None or needed.total_bytes < psutil.virtual_memory().available:
            return
    log(f"unloads {len(cache.keys())} warm models: the training needs their memory")
    cache.clear()


def process_count(spec: TrainingSpec) -> int:
    """Returns how many processes train together: those asked for, else one for each GPU.

    PPO is one process, whose rollouts and updates take turns.
    """
    if spec.method.single_process:
        return 1
    if spec.training.num_processes is not None:
        return spec.training.num_processes
    if spec.enforce_cpu or spec.resources.hardware.gpu.count < 2:
        return 1
    return min(spec.resources.hardware.gpu.count, max(1, gpu_count("cuda")))


def weights_of(spec: TrainingSpec, store: ResultStore) -> Path | None:
    """Returns the folder of the weights that `checkpoint.load` names; None without one.

    Raises:
        InputError: If there are no such weights.
        TransientError: If they cannot be fetched now.
    """
    load = None if spec.checkpoint is None else spec.checkpoint.load
    if load is None:
        return None
    from mloc_dagster.executors.training.weights import locate_weights

    return locate_weights(load, store, settings().home / "weights")
