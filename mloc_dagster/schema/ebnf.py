"""What keeps a text from being a grammar, in the EBNF that guided answers follow.

xgrammar has the last word when the model runs. Here is told what it would refuse for certain: rules
that are not there, what is not closed, and where nothing stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from mloc_dagster.errors import nearest_hint

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|\#[^\n]*)
    | (?P<define>::=)
    | (?P<element>"(?:\\.|[^"\\\n])*"|\[(?:\\.|[^\]\\\n])*\])
    | (?P<name>[A-Za-z_.][\w.-]*)
    | (?P<sign>[|()*+?]|\{[\d\s,]*\})
    | (?P<other>.)
    """,
    re.VERBOSE,
)
_UNCLOSED = {'"': "a string without its closing quote", "[": "a character class without its ']'"}


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def grammar_problem(text: str) -> str | None:
    """Returns what is wrong with a grammar, or None where nothing is."""
    tokens = list(_tokens(text))
    if any(token.text.startswith(("TagDispatch", "Token")) for token in tokens):
        return None  # xgrammar's macros have a syntax of their own
    return _odd_sign(tokens) or _unknown_rule(tokens) or _hole(tokens)


def _tokens(text: str) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            yield _Token(match.lastgroup or "", match[0], line)
        line += match[0].count("\n")


def _odd_sign(tokens: list[_Token]) -> str | None:
    for token in tokens:
        if token.kind == "other":
            what = _UNCLOSED.get(token.text, f"{token.text!r}, which no grammar has there")
            return f"line {token.line}: {what}"
    return None


def _unknown_rule(tokens: list[_Token]) -> str | None:
    following = [*tokens[1:], _Token("", "", 0)]
    defined: dict[str, int] = {}
    for token, after in zip(tokens, following, strict=True):
        if after.kind == "define" and token.kind == "name":
            if token.text in defined:
                return (
                    f"line {token.line}: rule {token.text!r} was defined in line "
                    f"{defined[token.text]}"
                )
            defined[token.text] = token.line
    if "root" not in defined:
        return f"there is no rule 'root ::= …', where answers begin{nearest_hint('root', defined)}"
    for token in tokens:
        if token.kind == "name" and token.text not in defined:
            hint = nearest_hint(token.text, defined)
            return f"line {token.line}: there is no rule {token.text!r}{hint}"
    return None


def _hole(tokens: list[_Token]) -> str | None:
    """Finds where an element is missing, and brackets without a partner."""
    depth = 0
    needs_element = False
    for place, token in enumerate([*tokens, _Token("", "", tokens[-1].line)]):
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        ends_rule = not token.kind or (after is not None and after.kind == "define")
        before = tokens[max(place - 1, 0)]
        starts = token.kind in ("name", "element") or token.text == "("
        empty = before.text + token.text == "()"
        if needs_element and (ends_rule or not (starts or empty)):
            return f"line {before.line}: nothing stands behind {before.text!r}"
        if ends_rule and depth:
            return f"line {token.line}: a '(' is not closed"
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0:
            return f"line {token.line}: a ')' closes nothing"
        needs_element = token.kind == "define" or token.text in ("|", "(")
    return None
