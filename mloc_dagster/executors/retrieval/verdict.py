"""A judge's verdict: the form that it is asked for, and what is read where it has another one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

from pydantic import JsonValue

from mloc_dagster.results import Judgement, Statement

_MOST_STATEMENTS = 50
"""A small model that is made to write a list may never end it by itself."""

VERDICT_FORM: Mapping[str, JsonValue] = {
    "type": "object",
    "properties": {
        "statements": {
            "type": "array",
            "maxItems": _MOST_STATEMENTS,
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "passage": {"type": "integer"},
                    "supported": {"type": "boolean"},
                },
                "required": ["text", "passage", "supported"],
                "additionalProperties": False,
            },
        },
        "reason": {"type": "string"},
    },
    "required": ["statements", "reason"],
    "additionalProperties": False,
}
"""The JSON Schema that verdicts have to fit, on engines that can see to it."""

_YES = frozenset({"true", "yes", "1", "supported"})
_NO = frozenset({"false", "no", "0", "unsupported", "not supported"})
_MOST_SHOWN = 80


def read_verdict(text: str, passages: int, *, whole: bool = True) -> Judgement:
    """Returns what a judge says; with its error where that cannot be read.

    JSON within other text is found, and `yes` or `1` is understood as well as `true`.

    Args:
        text: What the judge wrote.
        passages: How many passages there are: a statement names no other one.
        whole: Whether the judge had room to say all that it wanted.
    """
    try:
        verdict = _verdict(text)
        statements = [_statement(each, passages) for each in _list(verdict)]
    except ValueError as error:
        reason = str(error) if whole else f"{error}; it was cut off at inference.max_tokens"
        return Judgement(output=text, error=reason)
    reason = str(verdict.get("reason") or "")
    if not statements:
        error = "the verdict has no statement of the answer"
        return Judgement(reason=reason, output=text, error=error)
    share = math.fsum(each.supported for each in statements) / len(statements)
    return Judgement(score=share, statements=statements, reason=reason, output=text)


def _verdict(text: str) -> Mapping[str, object]:
    """Returns the first JSON object that has statements."""
    for found in _objects(text):
        if "statements" in found:
            return found
    raise ValueError(f"the verdict is no JSON object with statements: {_shown(text)}")


def _objects(text: str) -> Iterator[Mapping[str, object]]:
    decode = json.JSONDecoder().raw_decode
    place = text.find("{")
    while place >= 0:
        after = place + 1
        try:
            found, after = decode(text, place)
        except (ValueError, RecursionError):
            pass
        else:
            yield found
        place = text.find("{", after)


def _list(verdict: Mapping[str, object]) -> list[object]:
    statements = verdict["statements"]
    if not isinstance(statements, list):
        reason = f"the verdict's statements are no list: {_shown(statements)}"
        raise ValueError(reason)  # noqa: TRY004
    return cast("list[object]", statements)


def _statement(given: object, passages: int) -> Statement:
    fields = cast("Mapping[str, Any]", given) if isinstance(given, Mapping) else {}
    text, said = fields.get("text"), str(fields.get("supported")).strip().casefold()
    if not isinstance(text, str) or said not in _YES | _NO:
        raise ValueError(f"the verdict has no text or no verdict on a statement: {_shown(given)}")
    number = fields.get("passage")
    known = isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= passages
    return Statement(text, said in _YES, number if known else None)


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…")
