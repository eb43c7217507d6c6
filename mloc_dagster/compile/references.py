"""Resolving references: to upstream results when a task starts, to variables at the last moment.

`${UPPER_CASE}` is an environment reference: it stays as it is until the moment of use, when
`Reach.filled_in` reads the variable (`net.reach`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
from mloc_dagster.errors import DataError
from mloc_dagster.schema.placeholders import literal
from mloc_dagster.schema.task import Task
from mloc_dagster.schema.template import marked_in_spec

__all__ = [
    "Reference",
    "parse_expression",
    "resolve_references",
    "resolve_task",
]

_PLACEHOLDER_TEXTS = frozenset({("data", "text"), ("data", "template", "text")})


def resolve_references(value: JsonValue, lookup: Callable[[Reference], JsonValue]) -> JsonValue:
    """Replaces every reference in a value, and `$${` by `${`.

    Args:
        value: A spec, or another value.
        lookup: Gives the value of a reference; a string that is one reference keeps its type.

    Raises:
        DataError: If a reference has no value, or one that cannot stand within text.
    """
    return _Resolver(lookup, frozenset(each.path for each in marked_in_spec(value))).resolve(value)


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


def _look_up(reference: Reference, lookup: Callable[[Reference], JsonValue]) -> JsonValue:
    try:
        value = lookup(reference)
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"${{{reference}}} has no value: {error!r}") from error
    if value is None:
        raise DataError(f"${{{reference}}} has no value: the result holds null there")
    return value


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Replaces references.

    Attributes:
        lookup: Gives the value of a reference.
        marked: Places of the spec whose values mean files, addresses, secrets or options.
    """

    lookup: Callable[[Reference], JsonValue]
    marked: frozenset[Path]

    def resolve(self, value: JsonValue, at: Path = ()) -> JsonValue:
        if isinstance(value, dict):
            return {key: self.resolve(child, (*at, key)) for key, child in value.items()}
        if isinstance(value, list):
            return [self.resolve(child, (*at, i)) for i, child in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = whole_reference(value)
        if whole is not None:
            return self._found(whole, at)
        return "".join(self._render(part, at) for part in split_string(value))

    def _render(self, part: Part, at: Path) -> str:
        if part.kind == "text":
            return part.text
        if part.kind == "environment":
            return f"${{{part.text}}}"
        reference = parse_expression(part.text)
        value = self._found(reference, at)
        if isinstance(value, dict | list):
            raise DataError(f"${{{reference}}} is not a single value and cannot stand within text")
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    def _found(self, reference: Reference, at: Path) -> JsonValue:
        value = _look_up(reference, self.lookup)
        if isinstance(value, str) and at in _PLACEHOLDER_TEXTS:
            return literal(value)  # braces in an answer are no placeholders of the template's text
        # A model's output must not be able to name a secret where variables are expanded later.
        if isinstance(value, str) and at in self.marked and "${" in value:
            raise DataError(f"${{{reference}}} holds '${{', which must not come from a result here")
        return value
