"""The rows with the lowest scores, for people: what was asked, expected and found instead."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping

from mloc_dagster.results.summary import WorstRow

MOST = 10

Scored = Mapping[str, float | None]


class WorstRows:
    """Keeps the rows with the lowest scores.

    The first metric counts, of rows that are equal in it the next one, and then the index.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[float, ...], WorstRow]] = []
        """A heap whose first is the best of those that are kept; keys are negated for it."""
        self._best: tuple[float, ...] = ()

    def add(self, index: int, scores: Scored, describe: Callable[[], WorstRow]) -> None:
        """Takes a row.

        Args:
            index: The row's.
            scores: Its scores, in the order of the metrics.
            describe: Returns what is shown of it.
        """
        if all(each is None for each in scores.values()):
            return
        low = tuple(math.inf if each is None else each for each in scores.values())
        self._best = max(self._best, low)
        key = (*(-each for each in low), -float(index))
        if len(self._kept) < MOST:
            heapq.heappush(self._kept, (key, describe()))
        elif key > self._kept[0][0]:
            heapq.heapreplace(self._kept, (key, describe()))

    def result(self) -> tuple[WorstRow, ...]:
        """Returns the rows, the worst first; none that has all points, as the best one has."""
        full = tuple(-each for each in self._best) if all(each >= 1 for each in self._best) else ()
        kept = sorted(self._kept, key=lambda each: each[0], reverse=True)
        return tuple(row for key, row in kept if key[:-1] != full)
