"""The canonical form of JSON: what is compared, hashed and kept under a hash."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue


def canonical_json(value: JsonValue | Mapping[str, JsonValue]) -> str:
    """Returns equal text for equal values, in which the order of keys counts.

    Order has a meaning: a JSON schema's properties are generated in the order in which they are
    written. Fields of a block come from its type in one order; where a mapping's names are fields
    that somebody wrote in an order of their own, sort these, and nothing below them.
    """
    return json.dumps(value, ensure_ascii=True, separators=(",", ":"))
