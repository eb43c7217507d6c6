"""Secrets of tools, which no result and no log may hold."""

from __future__ import annotations

from collections.abc import Collection

from mloc_dagster.redaction import MASK

_SHORTEST = 4
"""Shorter values are masked nowhere: they would make holes in any text."""


def masked(text: str, secrets: Collection[str]) -> str:
    """Returns a text without the values of secrets."""
    for each in sorted(secrets, key=len, reverse=True):
        if len(each) >= _SHORTEST:
            text = text.replace(each, MASK)
    return text
