"""A place in the event log that forgets nothing which becomes visible late.

Ids are given when a transaction writes and seen when it commits: an event with a lower id may turn
up after one with a higher id. What is missing between two ids that were seen is therefore looked
for again, for as long as a transaction may take; nothing that was seen is read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

PATIENCE_S = 120.0
"""How long a missing id is looked for. Ids of transactions that failed never come."""

_MOST_GAPS = 200


class Gap(BaseModel):
    """Ids that are missing, both ends included, and when that was noticed (seconds since 1970)."""

    model_config = ConfigDict(frozen=True)

    first: int
    last: int
    since: float


class LogCursor(BaseModel):
    """How far the event log has been read; small enough to be a sensor's cursor.

    Attributes:
        after: Everything up to this id was read, except for what lies in gaps.
        gaps: What was missing, in order.
    """

    model_config = ConfigDict(frozen=True)

    after: int
    gaps: tuple[Gap, ...] = ()

    def advanced(self, seen: Iterable[int], now: float) -> LogCursor:
        """Returns the cursor after these ids were read, late ones among them.

        Args:
            seen: Ids, in any order.
            now: Seconds since 1970.
        """
        ids = sorted(set(seen))
        late = [each for each in ids if each <= self.after]
        new = [each for each in ids if each > self.after]
        gaps = [
            part
            for gap in self.gaps
            if now - gap.since < PATIENCE_S
            for part in _without(gap, late)
        ]
        before = self.after
        for each in new:
            if each > before + 1:
                gaps.append(Gap(first=before + 1, last=each - 1, since=now))
            before = each
        return LogCursor(after=before, gaps=tuple(gaps[-_MOST_GAPS:]))

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the gaps as pairs of ids, both included."""
        return [(gap.first, gap.last) for gap in self.gaps]


def _without(gap: Gap, ids: Sequence[int]) -> list[Gap]:
    parts: list[Gap] = []
    first = gap.first
    for each in ids:
        if gap.first <= each <= gap.last:
            if first < each:
                parts.append(gap.model_copy(update={"first": first, "last": each - 1}))
            first = each + 1
    if first <= gap.last:
        parts.append(gap.model_copy(update={"first": first}))
    return parts
