"""Exact arithmetic for models that cannot count: rational numbers, no eval."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

_MOST_CHARACTERS = 1000
_MOST_BITS = 4096
"""Of a numerator or a denominator: more than a thousand digits help nobody."""

_MOST_DIGITS = 1000

_SHOWN_DIGITS = 15
"""Of a number that has no end, such as 1/3."""

_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "–": "-"})
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
}


def calculator(expression: str) -> str:
    """Computes an arithmetic expression exactly.

    Args:
        expression: Numbers with + - * / // % ** and parentheses, abs, min, max and round, such as
            "(17 + 4) * 2 / 3".

    Returns:
        The number, in decimal.
    """
    if len(expression) > _MOST_CHARACTERS:
        raise ValueError(f"the expression has more than {_MOST_CHARACTERS} characters")
    text = expression.strip().rstrip("=").translate(_SIGNS).replace("^", "**")
    if not re.search(r"[A-Za-z]", text):
        text = _THOUSANDS.sub("", text)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"{expression!r} is no arithmetic expression") from None
    try:
        return _written(_value(tree.body, text.strip()))
    except ZeroDivisionError:
        raise ValueError(f"{expression!r} divides by zero") from None


def _value(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            # As it is written: 0.1 is a tenth, and no float is.
            found = Fraction((ast.get_source_segment(text, node) or "").replace("_", ""))
        case ast.UnaryOp(op=ast.USub()):
            found = -_value(node.operand, text)
        case ast.UnaryOp(op=ast.UAdd()):
            found = _value(node.operand, text)
        case ast.BinOp(op=ast.Pow()):
            found = _power(_value(node.left, text), _value(node.right, text))
        case ast.BinOp() if type(node.op) in _OPERATIONS:
            left, right = _value(node.left, text), _value(node.right, text)
            found = Fraction(_OPERATIONS[type(node.op)](left, right))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            found = _called(name, [_value(each, text) for each in node.args])
        case _:
            part = ast.get_source_segment(text, node) or text
            raise ValueError(f"{part!r} is no arithmetic: use numbers, + - * / // % ** and ( )")
    return _small(found)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ValueError("an exponent must be a whole number")
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    if size > 1 and size * abs(exponent) > _MOST_BITS:
        raise ValueError("the number is too large")
    return Fraction(base ** int(exponent))


def _called(name: str, arguments: list[Fraction]) -> Fraction:
    if name == "round" and len(arguments) == 2:
        if arguments[1].denominator != 1 or abs(arguments[1]) > _MOST_DIGITS:
            raise ValueError(f"round takes a number of digits up to {_MOST_DIGITS}")
        return Fraction(round(arguments[0], int(arguments[1])))
    try:
        return Fraction(_FUNCTIONS[name](*arguments))
    except TypeError:
        raise ValueError(f"{name} does not take {len(arguments)} numbers") from None


def _small(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _MOST_BITS:
        raise ValueError("the number is too large")
    return value


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    left = value.denominator
    for prime in (2, 5):
        while left % prime == 0:
            left //= prime
    whole = len(str(abs(value.numerator) // value.denominator).lstrip("0"))
    digits = whole + value.denominator.bit_length() if left == 1 else whole + _SHOWN_DIGITS
    context = Context(prec=digits)
    number = context.divide(Decimal(value.numerator), Decimal(value.denominator))
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
