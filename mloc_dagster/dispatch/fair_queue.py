"""Work of several owners in the order of start-time fair queuing."""

from __future__ import annotations

import heapq
from itertools import count


class FairQueue[ItemT]:
    """Gives each owner the same share: nobody waits for more than the others' next item each.

    An item's tag is where its owner's last one ended, and never before the queue's clock, which is
    the tag of what was taken last. The lowest tag goes first, the oldest of equal ones.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, ItemT]] = []
        self._ends: dict[str, int] = {}
        self._clock = 0
        self._places = count()

    def add(self, item: ItemT, *, owner: str, cost: int) -> None:
        """Adds an item that takes so much of its owner's share."""
        tag = max(self._clock, self._ends.get(owner, 0))
        self._ends[owner] = tag + cost
        heapq.heappush(self._waiting, (tag, next(self._places), item))

    def take(self) -> ItemT | None:
        """Returns the item whose turn it is; None without any."""
        if not self._waiting:
            return None
        self._clock, _, item = heapq.heappop(self._waiting)
        if not self._waiting:
            self._ends.clear()  # who comes next finds nobody to wait for
        return item
