"""What a message adds when a name is not among those that exist."""

from __future__ import annotations

from collections.abc import Sequence

from mloc_dagster.errors import nearest_hint

HALF_A_CHARACTER = "not valid Unicode: half of a surrogate pair is no character"
"""What is said of text that JSON can escape and UTF-8 cannot hold."""


def known_names(wanted: str, names: Sequence[str], kind: str) -> str:
    """Returns `"; did you mean 'x'? columns: x, y"`, without the guess when none is near."""
    listed = f"{kind}: {', '.join(names) if names else 'none'}"
    hint = nearest_hint(wanted, names)
    return f"{hint} {listed}" if hint.endswith("?") else f"; {listed}"
