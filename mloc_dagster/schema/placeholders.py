"""Text with `{placeholders}`: `{{` and `}}` stand for braces."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mloc_dagster.errors import DataError, nearest_hint

UPSTREAM_VALUES = ("prompt", "output")
"""What the text of `UpstreamData` may hold, beside columns."""

COLUMN_PREFIX = "columns."
"""Stands before the name of a column that an upstream row brought along."""

_TOKEN = re.compile(r"\{\{|\}\}|\{(?P<name>[^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class PlaceholderText:
    """A parsed text.

    Attributes:
        literals: What stands around the placeholders; one more than `names`.
        names: The placeholders, in order.
    """

    literals: tuple[str, ...]
    names: tuple[str, ...]

    def render(self, values: Mapping[str, str]) -> str:
        """Returns the text with each placeholder replaced; values are not parsed again."""
        pieces = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            pieces += (values[name], literal)
        return "".join(pieces)


def parse_placeholders(
    text: str, known: Iterable[str], open_prefix: str | None = None
) -> PlaceholderText:
    """Reads a text whose placeholders must all be known.

    Args:
        text: The text.
        known: What it may hold.
        open_prefix: Names that begin with it are known as well; with `""` every name is.

    Raises:
        DataError: If a placeholder is unknown, or a brace has no partner.
    """
    known = tuple(known)
    literals = [""]
    names: list[str] = []
    end = 0
    for match in _TOKEN.finditer(text):
        literals[-1] += text[end : match.start()]
        end = match.end()
        token = match[0]
        if token in ("{{", "}}"):
            literals[-1] += token[0]
            continue
        name = match["name"]
        if name is None:
            raise DataError(
                f"the template text has a single {token!r} at character {match.start()}; "
                f"write {token * 2!r} for a brace"
            )
        if name not in known and not (open_prefix is not None and name.startswith(open_prefix)):
            raise DataError(
                f"the template text has no value for {token!r}{nearest_hint(name, known)}; "
                f"labels: {', '.join(known)}; write '{{{{' and '}}}}' for braces"
            )
        names.append(name)
        literals.append("")
    literals[-1] += text[end:]
    return PlaceholderText(tuple(literals), tuple(names))


def literal(text: str) -> str:
    """Returns a text that `parse_placeholders` reads as just this text."""
    return text.replace("{", "{{").replace("}", "}}")
