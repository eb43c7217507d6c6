"""Where relevant passages stand: recall over how many are looked at, and the rank of the first."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mloc_dagster.results.passage_scores import ranked_ids
from mloc_dagster.results.rows import Passage
from mloc_dagster.results.summary import Ranking

_PLACES = (1, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


class RankingCounter:
    """Counts over the rows of which it is known what should be found.

    Ids are counted as the metrics do: those of documents where none is a passage's.
    """

    def __init__(self) -> None:
        self._rows = 0
        self._gains: list[float] = []
        """At each rank, the sum over rows of the share of relevant ids that stands there."""
        self._firsts: list[int] = []

    def add(self, passages: Sequence[Passage], relevant: Collection[str]) -> None:
        """Counts a row; one for which nothing is relevant does not count."""
        if not relevant:
            return
        self._rows += 1
        ids = ranked_ids(passages, relevant)
        missing = len(ids) - len(self._gains)
        self._gains += [0.0] * missing
        self._firsts += [0] * missing
        places = [place for place, each in enumerate(ids) if each in relevant]
        for place in places:
            self._gains[place] += 1 / len(relevant)
        if places:
            self._firsts[places[0]] += 1

    def result(self) -> Ranking | None:
        """Returns what was counted; None if no row says what is relevant, or nothing was found."""
        deepest = len(self._gains)
        if not deepest:
            return None
        places = sorted({*(each for each in _PLACES if each < deepest), deepest})
        recall = tuple((k, round(sum(self._gains[:k]) / self._rows, 9)) for k in places)
        return Ranking(
            rows=self._rows,
            recall=recall,
            first_ranks=tuple(self._firsts),
            missed=self._rows - sum(self._firsts),
        )
