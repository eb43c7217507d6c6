"""What a library's classes take, read from its source: importing vLLM or TRL takes seconds."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path


@cache
def class_fields(source: str, class_name: str) -> Mapping[str, str]:
    """Returns the annotated public fields of a class, class variables not, by name.

    Args:
        source: The source of a module.
        class_name: The class in it.

    Returns:
        The annotation of each field, as it is written.
    """
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return {
                field.target.id: ast.unparse(field.annotation)
                for field in node.body
                if isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and not field.target.id.startswith("_")
                and "ClassVar" not in ast.unparse(field.annotation)
            }
    return {}


@cache
def enum_values(source: str) -> Mapping[str, frozenset[str]]:
    """Returns the texts of each class of a module whose members are texts, by the class's name."""
    found: dict[str, frozenset[str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        values = [each.value for each in node.body if isinstance(each, ast.Assign)]
        texts = frozenset(text for each in values for text in _texts(each))
        if texts and any("Enum" in ast.unparse(base) for base in node.bases):
            found[node.name] = texts
    return found


@cache
def compared_texts(source: str, name: str) -> frozenset[str]:
    """Returns the texts that the code of a module compares a variable or attribute with."""
    return frozenset(
        text
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare) and ast.unparse(node.left).split(".")[-1] == name
        for other in node.comparators
        for text in _texts(other)
    )


def library_source(package: str, path: str) -> str:
    """Returns the source of a module of an installed package; empty where there is none."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        return ""
    source = Path(found.submodule_search_locations[0]) / path
    return source.read_text() if source.is_file() else ""


def _texts(node: ast.expr) -> list[str]:
    parts = node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]
    values = [each.value for each in parts if isinstance(each, ast.Constant)]
    return [each for each in values if isinstance(each, str)]
