"""How much memory a vLLM engine holds, and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mloc_dagster.executors.memory import weights_bytes
from mloc_dagster.executors.vllm_shutdown import in_process


def weights_bytes_of(llm: Any) -> int:
    """Returns the bytes of an engine's weights, at least as many as their files have.

    An engine in another process shows no more, and on a CPU vLLM packs most weights into a form
    that torch does not see.
    """
    folder = _folder(llm.model_config.model, llm.model_config.revision)
    files = [file for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind)]
    stored = sum(file.stat().st_size for file in files)
    if not in_process(llm):
        return stored
    return max(stored, weights_bytes(llm.model_executor.driver_worker.model_runner.model))


def held_bytes(llm: Any) -> int:
    """Returns the bytes that an engine holds on its devices: weights and key-value cache.

    On a GPU vLLM reserves a share of each device for both, unless it is told how large the cache
    is to be.
    """
    cache_bytes = llm.vllm_config.cache_config.kv_cache_memory_bytes
    if cache_bytes is not None:
        return weights_bytes_of(llm) + cache_bytes * _devices(llm)
    from vllm.platforms import current_platform

    share = llm.vllm_config.cache_config.gpu_memory_utilization
    return int(share * current_platform.get_device_total_memory()) * _devices(llm)


def device_of(llm: Any) -> str:
    """Returns where an engine runs: `cpu`, `cuda:0`, `cuda:0-3`."""
    kind = llm.vllm_config.device_config.device_type
    if kind == "cpu":
        return "cpu"
    count = _devices(llm)
    return f"{kind}:0" if count == 1 else f"{kind}:0-{count - 1}"


def _folder(model: str, revision: str | None) -> Path:
    """Returns where a model's files lie; of one from the hub, its folder in the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(model, "config.json", revision=revision)
    return Path(config).parent if isinstance(config, str) else Path(model)


def _devices(llm: Any) -> int:
    return llm.vllm_config.parallel_config.world_size
