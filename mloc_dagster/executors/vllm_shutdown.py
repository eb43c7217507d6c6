"""Ending a vLLM engine so that its memory is really free, and others stay alive.

Engines within one process share module globals of vLLM (the context of the forward pass that is
under way) and torch.distributed's groups, which vLLM creates with the first and destroys with any.
So one at a time starts, computes or ends, and the groups go with the last.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

TURN = threading.RLock()
"""Held by whoever starts, runs or ends an engine that works within this process."""

_alive: set[int] = set()


def announce(llm: Any) -> Any:
    """Counts a started engine as alive; returns it."""
    if in_process(llm):
        with TURN:
            _alive.add(id(llm))
    return llm


def in_process(llm: Any) -> bool:
    """Whether the engine works within this process (`LLMEngine` of vLLM)."""
    return hasattr(llm.engine_core, "engine_core")


def shut_down(llm: Any) -> None:
    """Ends an engine, its processes included. Its caller lets go of it and frees memory then."""
    if not in_process(llm):
        llm.engine_core.shutdown()
        llm.renderer.shutdown()
        return
    with TURN:
        _alive.discard(id(llm))
        with _kept_groups(keep=bool(_alive)):
            llm.engine_core.shutdown()
    llm.renderer.shutdown()
    _drop_tensors(llm)


@contextmanager
def _kept_groups(*, keep: bool) -> Iterator[None]:
    core: Any = import_module("vllm.v1.engine.core")
    original = core.cleanup_dist_env_and_memory
    if keep:
        core.cleanup_dist_env_and_memory = lambda: None
    try:
        yield
    finally:
        core.cleanup_dist_env_and_memory = original


def _drop_tensors(llm: Any) -> None:
    """Lets go of weights and cache also where a traceback still holds the engine."""
    worker = llm.model_executor.driver_worker
    llm.model_executor.driver_worker = None
    runner = getattr(worker, "model_runner", None)
    for owner, name in ((runner, "model"), (runner, "kv_caches"), (worker, "worker")):
        if owner is not None and hasattr(owner, name):
            setattr(owner, name, None)
