"""Which engine arguments the installed vLLM knows."""

from __future__ import annotations

from functools import cache

from mloc_dagster.schema.library_fields import class_fields, library_source


@cache
def vllm_argument_names() -> frozenset[str]:
    """Returns the fields of vLLM's `EngineArgs`; empty when vLLM is not installed."""
    return frozenset(class_fields(library_source("vllm", "engine/arg_utils.py"), "EngineArgs"))
