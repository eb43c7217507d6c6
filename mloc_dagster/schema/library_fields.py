"""Fields of a library's classes, read from its source: importing vLLM or TRL takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path


def class_fields(source: str, class_name: str) -> frozenset[str]:
    """Returns the annotated public fields of a class in a module's source, class variables not."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return frozenset(
                field.target.id
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not field.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(field.annotation)
            )
    return frozenset()


def library_source(package: str, path: str) -> str:
    """Returns the source of a module of an installed package; empty where there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return ""
    source = Path(found.submodule_search_locations[0]) / path
    return source.read_text() if source.is_file() else ""
