"""Plain YAML scalars → Python: YAML 1.1 as PyYAML reads it, less its traps.

`5e-7` is a number (PyYAML wants `5.0e-7`), dates and `12:30:00` stay text.
"""

from __future__ import annotations

import math
import re

from mloc_dagster.compile.tree import Scalar

_TRUE = frozenset({"yes", "true", "on"})
_FALSE = frozenset({"no", "false", "off"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_INF_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LARGEST = 2**63
_MAX_DIGITS = 400

_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null")}


def resolve_scalar(text: str, tag: str | None, *, plain: bool) -> Scalar:
    """Returns what a scalar means.

    Args:
        text: The scalar without its quotes.
        tag: Its explicit tag, if any.
        plain: Whether it stands without quotes.

    Raises:
        ValueError: If the tag is not one of JSON's types, or the text does not fit it.
    """
    if tag is None or tag == "!":
        return resolve_plain(text) if plain and tag is None else text
    kind = _TAGS.get(tag)
    if kind is None:
        raise ValueError(f"the tag {short_tag(tag)} is not allowed: a template holds plain data")
    if kind == "str":
        return text
    value = resolve_plain(text)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__.replace("NoneType", "null") != kind:
        raise ValueError(f"{text!r} is no {kind}, which its tag {short_tag(tag)} says")
    return value


def resolve_plain(text: str) -> Scalar:
    """Returns what an unquoted, untagged scalar means.

    Raises:
        ValueError: If it is a number that JSON cannot hold.
    """
    if text in _NULL:
        return None
    if text in (text.lower(), text.upper(), text.capitalize()):
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
    if _INT.fullmatch(text):
        return _integer(text)
    if _INF_NAN.fullmatch(text):
        raise ValueError(f"{text!r} is not a finite number")
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]!r} is too large for a number; quote it if it is text")
        return number
    return text


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    body = digits.lstrip("+-")
    if len(body) > _MAX_DIGITS:
        raise ValueError(f"{text[:20] + '…'!r} is too large for a number; quote it if it is text")
    base = 10
    if body[:2] in ("0b", "0x"):
        base = 0
        if len(body) == len("0x"):
            raise ValueError(f"{text!r} has no digits; quote it if it is text")
    elif body.startswith("0") and body != "0":
        base = 8
    number = int(digits, base)
    if not -_LARGEST <= number < _LARGEST:
        raise ValueError(f"{text[:40]!r} is too large for a number; quote it if it is text")
    return number


def short_tag(tag: str) -> str:
    """Returns a tag as one writes it: `!!python/object`."""
    prefix = "tag:yaml.org,2002:"
    return f"!!{tag[len(prefix) :]}" if tag.startswith(prefix) else tag
