"""What a filter of a search means, the same on every engine.

A payload fits if every key of the filter fits. A key's value is one of JSON's:

- a plain value fits what is equal and of its kind: `1` is `1.0`, but neither `true` nor `"1"`;
- several values fit where one of them does;
- a range compares numbers with numbers and texts with texts, by code point, and nothing else;
- `ne` fits whatever is not equal, also where the key is missing;
- a list in the payload fits if one of its elements does, and `ne` if all of them do.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard, cast

from mloc_dagster.schema import FilterValue, Range

Plain = bool | int | float | str

_COMPARISONS: Mapping[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "gt": (">", operator.gt),
    "gte": (">=", operator.ge),
    "lt": ("<", operator.lt),
    "lte": ("<=", operator.le),
}


def fits(payload: Mapping[str, Any] | None, filter: Mapping[str, FilterValue]) -> bool:
    """Returns whether a payload is what a filter asks for."""
    known = payload or {}
    return all(_value_fits(known.get(key), wanted) for key, wanted in filter.items())


def comparisons(wanted: Range) -> list[tuple[str, Plain]]:
    """Returns the bounds of a range, each with its operator: `>`, `>=`, `<` or `<=`."""
    bounds = ((sign, getattr(wanted, name)) for name, (sign, _) in _COMPARISONS.items())
    return [(sign, bound) for sign, bound in bounds if bound is not None]


def several(wanted: FilterValue) -> tuple[Plain, ...] | None:
    """Returns the values of which one has to be there; None of a range."""
    if isinstance(wanted, Range):
        return None
    return cast("tuple[Plain, ...]", wanted) if isinstance(wanted, tuple) else (wanted,)


def jsonpath(key: str, wanted: FilterValue) -> tuple[list[str], str | None, dict[str, Plain]]:
    """Returns a filter's key in SQL's path language, as PostgreSQL has it.

    Returns:
        Paths that have to lead to something; one that must not; the variables of all of them.
    """
    place = f"$.{json.dumps(key, ensure_ascii=False)}"
    values = several(wanted)
    if values is not None:
        variables = {f"v{n}": value for n, value in enumerate(values)}
        either = " || ".join(f"@ == ${name}" for name in variables) or "1 == 0"
        return [f"{place} ? ({either})"], None, variables
    assert isinstance(wanted, Range)  # noqa: S101 (the only other kind)
    variables = {}
    tests: list[str] = []
    for sign, bound in comparisons(wanted):
        tests.append(f"@ {sign} $b{len(tests)}")
        variables[f"b{len(tests) - 1}"] = bound
    refused = None
    if wanted.ne is not None:
        variables["ne"] = wanted.ne
        refused = f"{place} ? (@ == $ne)"
    return [f"{place} ? ({' && '.join(tests)})"] if tests else [], refused, variables


def _value_fits(value: Any, wanted: FilterValue) -> bool:
    elements = cast("list[Any]", value) if isinstance(value, list) else [value]
    values = several(wanted)
    if values is not None:
        return any(_equal(each, one) for each in elements for one in values)
    assert isinstance(wanted, Range)  # noqa: S101 (the only other kind)
    if wanted.ne is not None and any(_equal(each, wanted.ne) for each in elements):
        return False
    bounds = comparisons(wanted)
    return not bounds or any(_within(each, wanted) for each in elements)


def _equal(value: Any, wanted: Plain) -> bool:
    return _same_kind(value, wanted) and value == wanted


def _within(value: Any, wanted: Range) -> bool:
    for name, (_, holds) in _COMPARISONS.items():
        bound = getattr(wanted, name)
        if bound is not None and not (_same_kind(value, bound) and holds(value, bound)):
            return False
    return True


def _same_kind(value: Any, wanted: Plain) -> bool:
    if isinstance(wanted, bool) or isinstance(value, bool):
        return isinstance(wanted, bool) and isinstance(value, bool)
    if isinstance(wanted, str):
        return isinstance(value, str)
    return _is_number(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
