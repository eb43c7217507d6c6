"""Which engine arguments the installed vLLM knows, read from its source: its import takes 20 s."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path


@cache
def vllm_argument_names() -> frozenset[str]:
    """Returns the fields of vLLM's `EngineArgs`; empty when vLLM is not installed."""
    package = importlib.util.find_spec("vllm")
    if package is None or not package.submodule_search_locations:
        return frozenset()
    source = Path(package.submodule_search_locations[0]) / "engine" / "arg_utils.py"
    return argument_names(source.read_text()) if source.is_file() else frozenset()


def argument_names(source: str) -> frozenset[str]:
    """Returns the annotated fields of the class `EngineArgs` in a module's source.

    Private ones, and class variables, are left out.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
            return frozenset(
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not field.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(field.annotation)
            )
    return frozenset()
