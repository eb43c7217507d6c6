"""Conditions on rows: which of them a later stage takes.

The form is Python's, and nothing of it is executed: names of columns, numbers, texts, `true`,
`false`, `null`, lists, comparisons (also `in` and `not in`), `and`, `or`, `not`, brackets. As in
SQL a comparison with nothing holds for no row; `is null` and `is not null` ask for it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from mloc_dagster.errors import DataError, nearest_hint

_EXAMPLE = 'expected a form such as \'f1 < 0.5 and level in ["hard", "medium"]\''
_WORDS: Mapping[str, object] = {
    "true": True,
    "True": True,
    "false": False,
    "False": False,
    "null": None,
    "None": None,
}
_OPERATORS: Mapping[type[ast.cmpop], Callable[[Any, Any], object]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, several: value in several,
    ast.NotIn: lambda value, several: value not in several,
}


class RowFilterError(ValueError):
    """A text that is no condition; the message says where."""


@dataclass(frozen=True, slots=True)
class RowFilter:
    """A condition.

    Attributes:
        text: As written.
        names: The columns that it reads, `answers` for `answers.text`.
        body: What it was parsed to.
    """

    text: str
    names: tuple[str, ...]
    body: ast.expr

    def check(self, known: Collection[str]) -> None:
        """Checks that there are the columns that it reads.

        Raises:
            DataError: If one is not there; names the nearest.
        """
        for name in self.names:
            if name not in known:
                raise DataError(
                    f"{self.text!r}: rows have no column {name!r}{nearest_hint(name, known)}"
                )

    def holds(self, row: Mapping[str, object]) -> bool:
        """Returns whether it holds for a row.

        Raises:
            DataError: If it compares what has no order, such as a text with a number.
        """
        return bool(self._value(self.body, row))

    def _value(self, node: ast.expr, row: Mapping[str, object]) -> object:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._value(each, row) for each in values)
            case ast.BoolOp(values=values):
                return any(self._value(each, row) for each in values)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, row)
            case ast.UnaryOp(operand=operand):
                return -cast("float", self._value(operand, row))
            case ast.Compare(left=left, ops=ops, comparators=others):
                return self._compare(left, ops, others, row)
            case ast.List(elts=elements):
                return [self._value(each, row) for each in elements]
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return _WORDS[name] if name in _WORDS else row.get(name)
            case ast.Attribute(value=inner, attr=name):
                value = self._value(inner, row)
                return (
                    cast("Mapping[str, object]", value).get(name)
                    if isinstance(value, Mapping)
                    else None
                )
            case _:
                raise AssertionError(f"{ast.dump(node)} was not refused")

    def _compare(
        self,
        left: ast.expr,
        ops: list[ast.cmpop],
        others: list[ast.expr],
        row: Mapping[str, object],
    ) -> bool:
        value = self._value(left, row)
        for op, node in zip(ops, others, strict=True):
            other = self._value(node, row)
            if isinstance(op, ast.Is | ast.IsNot):
                holds = (value is other) is isinstance(op, ast.Is)
            elif value is None or other is None:
                holds = False
            else:
                try:
                    holds = bool(_OPERATORS[type(op)](value, other))
                except TypeError:
                    raise DataError(
                        f"{self.text!r} compares {value!r} with {other!r}, which have no order"
                    ) from None
            if not holds:
                return False
            value = other
        return True


def parse_filter(text: str) -> RowFilter:
    """Reads a condition.

    Raises:
        RowFilterError: If the text is none.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError) as error:
        place = (
            f" at position {error.offset}"
            if isinstance(error, SyntaxError) and error.offset
            else ""
        )
        hint = "; write == for equal" if re.search(r"[^=<>!]=[^=]", text) else ""
        raise RowFilterError(f"{text!r} is no condition{place}{hint}; {_EXAMPLE}") from None
    names: dict[str, None] = {}
    _check(tree.body, text, names)
    return RowFilter(text, tuple(names), tree.body)


def _check(node: ast.expr, text: str, names: dict[str, None]) -> None:
    """Refuses what no condition may hold, and collects the columns that it reads."""
    if isinstance(node, ast.Name) and node.id not in _WORDS:
        names[node.id] = None
    for each in _operands(node, text):
        _check(each, text, names)


def _operands(node: ast.expr, text: str) -> list[ast.expr]:
    match node:
        case ast.BoolOp(values=operands) | ast.List(elts=operands):
            return operands
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return [operand]
        case ast.Compare(left=left, ops=ops, comparators=others):
            for op, other in zip(ops, others, strict=True):
                _check_sides(op, other, text)
            return [left, *others]
        case ast.Attribute(value=ast.Name() | ast.Attribute() as inner):
            return [inner]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return []
        case ast.Name() | ast.Constant(value=str() | int() | float() | None):
            return []
        case _:
            piece = ast.get_source_segment(text.strip(), node) or text
            raise RowFilterError(
                f"{text!r}: {piece!r} is nothing that a condition may hold; {_EXAMPLE}"
            )


def _check_sides(op: ast.cmpop, other: ast.expr, text: str) -> None:
    """Refuses comparisons that never mean anything."""
    is_null = isinstance(other, ast.Name | ast.Constant) and _word(other) is None
    if isinstance(op, ast.Is | ast.IsNot) and not is_null:
        raise RowFilterError(f"{text!r}: 'is' asks for null only; write == for equal; {_EXAMPLE}")
    several = isinstance(other, ast.List)
    if isinstance(op, ast.In | ast.NotIn):
        if not (several or isinstance(other, ast.Name | ast.Attribute)):
            raise RowFilterError(f"{text!r}: 'in' takes a list, or a column with one; {_EXAMPLE}")
    elif several:
        raise RowFilterError(f"{text!r}: a list stands behind 'in' only; {_EXAMPLE}")


def _word(node: ast.Name | ast.Constant) -> object:
    return node.value if isinstance(node, ast.Constant) else _WORDS.get(node.id, node)
