"""The condition language of `data.where`, over whole columns at once."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pyarrow  # pyright: ignore[reportMissingTypeStubs]
import pyarrow.compute  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.errors import DataError, InputError
from mloc_dagster.schema import RowFilter, RowFilterError, parse_filter
from mloc_dagster.viewer.row_source import RowSource

_pa: Any = pyarrow  # it has no types
_pc: Any = pyarrow.compute

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_BATCH_ROWS = 8192
_PLAIN = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}


class _NotColumnwise(Exception):
    """Something that is only known row by row, such as whether a list of the row holds a text."""


def mask(source: RowSource, text: str) -> np.ndarray:
    """Returns for which rows a condition holds.

    Raises:
        InputError: If the text is no condition, or reads a column that is not there.
    """
    try:
        condition = parse_filter(text)
        condition.check([each.name for each in source.columns])
    except (RowFilterError, DataError) as error:
        raise InputError(str(error)) from error
    columns = {name: source.column(name) for name in condition.names}
    try:
        return _Columnwise(columns, source.rows).holds(condition.body)
    except _NotColumnwise:
        return _row_by_row(condition, columns, source.rows)
    except _pa.ArrowException as error:
        raise InputError(f"{text!r} compares what has no order: {error}") from error


def _row_by_row(condition: RowFilter, columns: dict[str, Any], rows: int) -> np.ndarray:
    found = np.zeros(rows, dtype=bool)
    try:
        for start in range(0, rows, _BATCH_ROWS):
            some = _pa.table(
                [each.slice(start, _BATCH_ROWS) for each in columns.values()], names=list(columns)
            )
            for place, row in enumerate(some.to_pylist(), start):
                found[place] = condition.holds(row)
    except DataError as error:
        raise InputError(str(error)) from error
    return found


class _Columnwise:
    """Computes a condition that `parse_filter` has checked."""

    def __init__(self, columns: dict[str, Any], rows: int) -> None:
        self._columns = columns
        self._rows = rows

    def holds(self, node: ast.expr) -> np.ndarray:
        match node:
            case ast.BoolOp(op=ast.And(), values=values):
                return np.logical_and.reduce([self.holds(each) for each in values])
            case ast.BoolOp(values=values):
                return np.logical_or.reduce([self.holds(each) for each in values])
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.holds(operand)
            case ast.Compare(left=left, ops=ops, comparators=others):
                sides = [left, *others]
                each = [
                    self._compare(op, sides[place], sides[place + 1])
                    for place, op in enumerate(ops)
                ]
                return np.logical_and.reduce(each)
            case _:
                return self._truth(self._value(node))

    def _compare(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> np.ndarray:
        value = self._value(left)
        if isinstance(op, ast.Is | ast.IsNot):
            missing = self._mask(_pc.is_null(value))
            return missing if isinstance(op, ast.Is) else ~missing
        present = self._mask(_pc.is_valid(value))
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List):
                raise _NotColumnwise
            listed = [self._value(each).as_py() for each in right.elts]
            known = self._mask(_pc.is_in(value, value_set=_pa.array(listed)))
            return (known if isinstance(op, ast.In) else ~known) & present
        other = self._value(right)
        held = getattr(_pc, _COMPARISONS[type(op)])(value, other)
        return self._mask(_pc.fill_null(held, False))

    def _value(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return _pa.scalar(value)
            case ast.UnaryOp(operand=ast.Constant(value=int() | float() as value)):
                return _pa.scalar(-value)
            case ast.Name(id=name) if name in _PLAIN:
                return _pa.scalar(_PLAIN[name])
            case ast.Name(id=name):
                return self._columns[name]
            case ast.Attribute(value=inner, attr=name):
                value = self._value(inner)
                if not _pa.types.is_struct(value.type) or value.type.get_field_index(name) < 0:
                    raise _NotColumnwise
                return _pc.struct_field(value, name)
            case _:
                raise _NotColumnwise

    def _truth(self, value: Any) -> np.ndarray:
        if not _pa.types.is_boolean(value.type):
            raise _NotColumnwise
        return self._mask(_pc.fill_null(value, False))

    def _mask(self, value: Any) -> np.ndarray:
        if isinstance(value, _pa.Scalar):
            return np.full(self._rows, bool(value.as_py()))
        return value.to_numpy(zero_copy_only=False).astype(bool)
