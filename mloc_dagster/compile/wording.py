"""The words for what a field expects and for what it got."""

from __future__ import annotations

import json

from pydantic_core import ErrorDetails

from mloc_dagster.compile.tree import Tree

_SHOWN = 60

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


def expectation(detail: ErrorDetails) -> str:
    """Returns what a field wants, as the object of "expected"."""
    kind = detail["type"]
    if kind == "string_pattern_mismatch":
        pattern: str = detail.get("ctx", {}).get("pattern", "")
        if "https?" in pattern:
            return "an http:// or https:// URL"
        return "letters, digits, '.', '_' and '-', with a letter or digit at both ends"
    template = _EXPECTED.get(kind)
    if template is None:
        return detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return template.format(**detail.get("ctx", {}))


def mismatch(expected: str, tree: Tree, *, secret: bool = False) -> str:
    """Returns what was expected and what stands there, unless it may be a secret."""
    if secret:
        return f"expected {expected}, got something else"
    hint = ""
    if expected == "text" and isinstance(tree.content, int | float) and tree.raw is not None:
        hint = f"; write it in quotes: '{tree.raw}'"
    return f"expected {expected}, got {shown(tree)}{hint}"


def shown(tree: Tree) -> str:
    """Returns a value for a message: short, as the author wrote it. No secret may come here."""
    if tree.raw is not None and tree.raw.startswith("${") and tree.content != tree.raw:
        return f"{tree.raw}, which is {_kind(tree)}"
    if isinstance(tree.content, bool):
        value = json.dumps(tree.content)
        if tree.raw is not None and tree.raw.lower() != value:
            return f"{tree.raw}, which YAML reads as {value}"
        return value
    if tree.content is None:
        return "nothing"
    if isinstance(tree.content, dict):
        return f"a mapping with {', '.join(map(repr, list(tree.content)[:5])) or 'nothing in it'}"
    if isinstance(tree.content, list):
        return f"a list of {len(tree.content)}"
    if isinstance(tree.content, str):
        text = repr(tree.content)
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f"{tree.raw or tree.content}"


def _kind(tree: Tree) -> str:
    if isinstance(tree.content, bool):
        return "true or false"
    kinds = {
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "dict": "a mapping",
        "list": "a list",
    }
    return kinds.get(type(tree.content).__name__, "nothing")
