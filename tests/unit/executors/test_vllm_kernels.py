"""Whatever a process has imported, vLLM's search for its kernels gets through it."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from mloc_dagster.executors.engines.vllm.process import only_readable_modules

DISPATCHER = "vllm.triton_utils.dispatcher"

# What vLLM 0.32 does, without what it takes to import it.
SCAN = """
import sys

def _rebind_kernels(overrides):
    for module in list(sys.modules.values()):
        namespace = getattr(module, "__dict__", None) or {}
        for name, value in list(namespace.items()):
            if hasattr(value, "__dict__"):
                vars(value).get("kernel")
            for original, wrapper in overrides:
                if value is original:
                    setattr(module, name, wrapper)
"""


class Proxy:
    """Answers like `flask.request` outside of a request."""

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise RuntimeError("Working outside of request context.")


@pytest.fixture(params=["as written here", pytest.param("installed", marks=pytest.mark.slow)])
def dispatcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "installed":
        pytest.importorskip("vllm", exc_type=ImportError)
        yield import_module(DISPATCHER)
        return
    module = ModuleType(DISPATCHER)
    exec(SCAN, module.__dict__)  # its `sys` is then looked up in the module, as in vLLM
    monkeypatch.setitem(sys.modules, DISPATCHER, module)
    yield module


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Two imported modules: one holds a kernel, the other a proxy."""
    kernels, web = ModuleType("some_kernels"), ModuleType("some_web_framework")
    kernels.kernel = object()  # type: ignore[attr-defined]
    web.request = Proxy()  # type: ignore[attr-defined]
    for module in (web, kernels):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return kernels, web


def test_kernels_are_replaced_beside_a_module_that_cannot_be_read(
    dispatcher: Any, holders: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels, web = holders
    original, ours = kernels.kernel, object()
    # What else this process has imported may fail in its own way.
    modules = {each.__name__: each for each in (web, kernels)}
    with monkeypatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setattr(dispatcher, "sys", SimpleNamespace(modules=modules))
        with pytest.raises(RuntimeError, match="Working outside of"):
            dispatcher._rebind_kernels([(original, ours)])
    kernels.kernel = original

    with only_readable_modules():
        dispatcher._rebind_kernels([(original, ours)])

    assert kernels.kernel is ours


@pytest.mark.usefixtures("holders")
def test_vllm_is_left_as_it_was_even_after_an_error(dispatcher: Any) -> None:
    scan = dispatcher._rebind_kernels

    with pytest.raises(TypeError), only_readable_modules():
        dispatcher._rebind_kernels(5)

    assert dispatcher._rebind_kernels is scan
    assert dispatcher.sys is sys
