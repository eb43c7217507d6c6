"""Resolving references: to upstream results when a task starts, to variables at the last moment.

`${UPPER_CASE}` is an environment reference: it stays as it is until the moment of use, when
`expand_environment` reads the variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from pydantic import JsonValue

from mloc_dagster.compile.compiled import CompiledTask
from mloc_dagster.compile.expressions import (
    Part,
    Reference,
    parse_expression,
    split_string,
    whole_reference,
)
from mloc_dagster.compile.tree import Path
from mloc_dagster.compile.typed import task_from_mapping
from mloc_dagster.errors import DataError, InputError
from mloc_dagster.schema.placeholders import literal
from mloc_dagster.schema.task import Task

__all__ = [
    "Reference",
    "expand_environment",
    "parse_expression",
    "resolve_references",
    "resolve_task",
]

_PLACEHOLDER_TEXTS = frozenset({("data", "text"), ("data", "template", "text")})
_EXPANDED_BLOCKS = frozenset({"output", "qdrant", "model", "checkpoint", "reward_model"})


def resolve_references(
    value: JsonValue, lookup: Callable[[Reference], JsonValue], at: Path = ()
) -> JsonValue:
    """Replaces every reference in a value, and `$${` by `${`.

    Args:
        value: A spec, or a part of one.
        lookup: Gives the value of a reference; a string that is one reference keeps its type.
        at: Where the value stands in the spec.

    Raises:
        DataError: If a reference has no value, or one that cannot stand within text.
    """
    if isinstance(value, dict):
        return {key: resolve_references(child, lookup, (*at, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [resolve_references(child, lookup, (*at, i)) for i, child in enumerate(value)]
    if not isinstance(value, str) or "${" not in value:
        return value
    whole = whole_reference(value)
    if whole is not None:
        return _safe(whole, _look_up(whole, lookup), at)
    return "".join(_render(part, lookup, at) for part in split_string(value))


def resolve_task(
    compiled: CompiledTask,
    lookup: Callable[[Reference], JsonValue],
    check: Callable[[JsonValue], None] = lambda _: None,
) -> Task:
    """Returns a compiled task with every reference replaced by its value.

    Args:
        compiled: The task.
        lookup: Gives the value of a reference.
        check: Looks at the spec once its references are replaced; may raise.

    Raises:
        DataError: If a reference has no value.
        TemplateError: If a value does not fit the field that it fills.
    """
    spec = resolve_references(dict(compiled.mapping), lookup)
    check(spec)
    return task_from_mapping(compiled.task.name, compiled.task.depends_on, spec)


def expand_environment(text: str) -> str:
    """Replaces every `${NAME}` by the environment variable.

    Raises:
        InputError: If a variable is not set.
    """
    return re.sub(r"\$\{([A-Z_][A-Z0-9_]*)\}", _variable, text)


def _variable(match: re.Match[str]) -> str:
    value = os.environ.get(match[1])
    if value is None:
        raise InputError(f"the environment variable {match[1]} is not set, but {match[0]} needs it")
    return value


def _look_up(reference: Reference, lookup: Callable[[Reference], JsonValue]) -> JsonValue:
    try:
        value = lookup(reference)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"${{{reference}}} has no value: {error!r}") from error
    if value is None:
        raise DataError(f"${{{reference}}} has no value: the result holds null there")
    return value


def _render(part: Part, lookup: Callable[[Reference], JsonValue], at: Path) -> str:
    if part.kind == "text":
        return part.text
    if part.kind == "environment":
        return f"${{{part.text}}}"
    reference = parse_expression(part.text)
    value = _safe(reference, _look_up(reference, lookup), at)
    if isinstance(value, dict | list):
        raise DataError(f"${{{reference}}} is not a single value and cannot stand within text")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _safe(reference: Reference, value: JsonValue, at: Path) -> JsonValue:
    if isinstance(value, str) and at in _PLACEHOLDER_TEXTS:
        return literal(value)  # braces in an answer are no placeholders of the template's text
    # A model's output must not be able to name a secret where variables are expanded later.
    if isinstance(value, str) and at and at[0] in _EXPANDED_BLOCKS and "${" in value:
        raise DataError(f"${{{reference}}} holds '${{', which must not come from a result here")
    return value
