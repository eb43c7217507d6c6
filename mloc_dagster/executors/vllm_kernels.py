"""vLLM's search for its kernels among everything that the process has imported."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any


@contextmanager
def only_readable_modules() -> Iterator[None]:
    """Keeps other libraries' modules from breaking an engine that starts in this process.

    On a CPU vLLM 0.32 replaces its kernels wherever one is held, and for that asks each object of
    each imported module for its `__dict__`. Some answer with an error: `flask.current_app` and
    `flask.request` do outside of a request. Modules that hold such an object are left out.
    """
    dispatcher: Any = import_module("vllm.triton_utils.dispatcher")
    original = dispatcher._rebind_kernels  # noqa: SLF001  what scans, and nothing else

    def rebind(overrides: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated, and merely looked at here
            dispatcher.sys = SimpleNamespace(modules=_readable_modules())
            try:
                original(overrides)
            finally:
                dispatcher.sys = sys

    dispatcher._rebind_kernels = rebind  # noqa: SLF001
    try:
        yield
    finally:
        dispatcher._rebind_kernels = original  # noqa: SLF001


def _readable_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in list(sys.modules.items()) if _is_readable(module)}


def _is_readable(module: object) -> bool:
    try:
        for value in list(vars(module).values()):
            if hasattr(value, "__dict__"):
                vars(value).get("kernel")
    except Exception:  # noqa: BLE001  whatever a foreign object raises, vLLM would raise it too
        return False
    return True
