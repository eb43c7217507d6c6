"""vLLM's sleep mode: an engine's weights wait in main memory, and its GPUs are free.

It is there on GPUs, for engines started with `enable_sleep_mode`. At level 1 the weights are kept
and the key-value cache is let go of, prefixes included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEVEL = 1
"""Level 2 would let go of the weights as well, and waking would read them again."""


def can_sleep(arguments: Mapping[str, Any]) -> bool:
    """Returns whether an engine that was started with these arguments can sleep."""
    return bool(arguments.get("enable_sleep_mode"))


def drop_sleep_mode(given: dict[str, Any]) -> tuple[str, ...]:
    """Takes the argument out where the platform has no sleep mode; returns what to say of it."""
    if not given.pop("enable_sleep_mode", False):
        return ()
    return ("model.vllm.enable_sleep_mode is for GPUs; on this CPU an evicted model is unloaded",)
