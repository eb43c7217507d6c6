"""Canonical JSON and digests: what is compared, hashed and kept under a hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

Ingredient = str | bytes | int | None | Sequence["Ingredient"]
"""What a digest is made of."""


def canonical_json(value: JsonValue | Mapping[str, JsonValue]) -> str:
    """Returns equal text for equal values, in which the order of keys counts.

    Order has a meaning: a JSON schema's properties are generated in the order in which they are
    written. Fields of a block come from its type in one order; where a mapping's names are fields
    that somebody wrote in an order of their own, sort these, and nothing below them.
    """
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))


def digest_of(*ingredients: Ingredient) -> bytes:
    """Returns the sha256 of a list of ingredients; other lists have other digests.

    Each goes in with its length before it, so that no two lists run together to the same bytes.
    """
    digest = hashlib.sha256()
    for each in ingredients:
        digest.update(_framed(each))
    return digest.digest()


def _framed(value: Ingredient) -> bytes:
    if value is None:
        return b"0"
    if isinstance(value, str):
        kind, data = b"s", value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        kind, data = b"b", value
    elif isinstance(value, int):
        kind, data = b"i", b"%d" % value
    else:
        kind, data = b"l", b"".join(map(_framed, value))
    return b"%b%d:%b" % (kind, len(data), data)
