"""Cutting rows into shards that take equally long, as far as single rows allow."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from mloc_dagster.planning.cost import RowLoad

MAX_OVER_MEAN = 1.15
"""A shard may be expected to take this much of the mean, where single rows allow it."""

_MAX_PIECES = 1 << 18  # 10 MB; 256 pieces for each of the most shards that a task may have
_PARTS_OF_A_SHARD = 16  # a run of equal rows larger than a shard may be cut at so many places


@dataclass(frozen=True, slots=True)
class Cut:
    """A shard to be: the rows from the cut before it to its own.

    Attributes:
        stop: Rows up to its end, counted from the first row of all.
        prompt_tokens: Tokens that it reads.
        cached_tokens: How many of them are expected in the prefix cache.
        output_tokens: Tokens that it is expected to write.
        cost: What it is expected to cost.
    """

    stop: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float


class LoadLine:
    """All rows' loads, one after another, in memory that many rows do not exceed.

    A piece is what no cut divides: a row, a run of rows with the same input or, of very many
    rows, neighbours that are small against any shard.

    Args:
        max_pieces: Pieces in memory at most.
    """

    def __init__(self, max_pieces: int = _MAX_PIECES) -> None:
        self._max_pieces = max_pieces
        self._rows = array("q")
        self._prompt = array("q")
        self._cached = array("q")
        self._output = array("q")
        self._cost = array("d")
        self._runs = bytearray()  # 1: the piece is a run of rows with the same input

    def add(self, load: RowLoad, *, same: bool = False) -> None:
        """Adds a row; `same` when its input is that of the row before."""
        if same and self._rows:
            self._rows[-1] += 1
            self._prompt[-1] += load.prompt_tokens
            self._cached[-1] += load.cached_tokens
            self._output[-1] += load.output_tokens
            self._cost[-1] += load.cost
            self._runs[-1] = 1
            return
        if len(self._rows) >= self._max_pieces:
            self._coarsen()
        self._append(1, load.prompt_tokens, load.cached_tokens, load.output_tokens, load.cost, 0)

    def cut(self, max_shards: int) -> list[Cut]:
        """Cuts the line into at most `max_shards` shards.

        The costliest is at most `MAX_OVER_MEAN` times the mean or, where pieces are too large
        for that, as small as any cut between pieces makes it. A run of rows with the same input
        is a piece, unless it costs more than a shard should.

        Raises:
            ValueError: If there are no rows, or `max_shards` is below one.
        """
        if max_shards < 1 or not self._rows:
            raise ValueError(f"cannot cut {sum(self._rows)} rows into {max_shards} shards")
        self._divide_runs(sum(self._cost) / max_shards)
        stops = balanced_stops(self._cost, max_shards)
        sums = [
            list(accumulate(values, initial=0))
            for values in (self._rows, self._prompt, self._cached, self._output)
        ]
        costs = list(accumulate(self._cost, initial=0.0))
        cuts: list[Cut] = []
        for start, stop in pairwise([0, *stops]):
            prompt, cached, output = (line[stop] - line[start] for line in sums[1:])
            cuts.append(Cut(sums[0][stop], prompt, cached, output, costs[stop] - costs[start]))
        return cuts

    def _append(
        self, rows: int, prompt: int, cached: int, output: int, cost: float, run: int
    ) -> None:
        self._rows.append(rows)
        self._prompt.append(prompt)
        self._cached.append(cached)
        self._output.append(output)
        self._cost.append(cost)
        self._runs.append(run)

    def _take(self) -> list[tuple[int, int, int, int, float, int]]:
        columns = (self._rows, self._prompt, self._cached, self._output, self._cost, self._runs)
        pieces = list(zip(*columns, strict=True))
        for column in columns:
            del column[:]
        return pieces

    def _coarsen(self) -> None:
        """Joins pairs of small pieces; of n pieces at least n / 4 go.

        At most a quarter of n pieces' pairs can cost more than four times the mean piece, and
        there are n / 2 pairs.
        """
        limit = 4 * sum(self._cost) / len(self._cost)
        pieces = self._take()
        for left, right in zip(pieces[::2], pieces[1::2], strict=False):
            if left[4] + right[4] > limit:
                self._append(*left)
                self._append(*right)
            else:
                rows, prompt, cached, output, cost, _ = map(sum, zip(left, right, strict=True))
                self._append(int(rows), int(prompt), int(cached), int(output), cost, 0)
        if len(pieces) % 2:
            self._append(*pieces[-1])

    def _divide_runs(self, mean: float) -> None:
        if not any(run and cost > mean for run, cost in zip(self._runs, self._cost, strict=True)):
            return
        for rows, prompt, cached, output, cost, run in self._take():
            parts = 1
            if run and cost > mean:
                parts = min(rows, int(cost / mean * _PARTS_OF_A_SHARD) + 1)
            for part in range(parts):
                first, last = rows * part // parts, rows * (part + 1) // parts
                self._append(
                    last - first,
                    prompt * last // rows - prompt * first // rows,
                    cached * last // rows - cached * first // rows,
                    output * last // rows - output * first // rows,
                    cost * (last - first) / rows,
                    run,
                )


def balanced_stops(costs: Sequence[float], max_shards: int) -> list[int]:
    """Returns where to cut pieces in a row into shards: for each the piece after its last.

    Args:
        costs: Of each piece; all above 0.
        max_shards: Shards at most; fewer pieces give one shard each.
    """
    shards = min(max_shards, len(costs))
    sums = list(accumulate(costs, initial=0.0))
    stops = _quantile_stops(sums, shards)
    mean = sums[-1] / shards
    worst = _worst(sums, stops)
    if worst <= MAX_OVER_MEAN * mean:
        return stops
    return _bottleneck_stops(sums, shards, max(mean, *costs), worst)


def _worst(sums: Sequence[float], stops: Sequence[int]) -> float:
    return max(sums[stop] - sums[start] for start, stop in pairwise([0, *stops]))


def _quantile_stops(sums: Sequence[float], shards: int) -> list[int]:
    """Cuts where the cost so far is nearest to the shards' equal shares; none is empty."""
    pieces = len(sums) - 1
    stops: list[int] = []
    for shard in range(1, shards):
        target = sums[-1] * shard / shards
        stop = bisect_left(sums, target)
        if stop and target - sums[stop - 1] < sums[stop] - target:
            stop -= 1
        least = (stops[-1] if stops else 0) + 1
        stops.append(min(max(stop, least), pieces - (shards - shard)))
    return [*stops, pieces]


def _bottleneck_stops(sums: Sequence[float], shards: int, low: float, high: float) -> list[int]:
    """Cuts so that the costliest shard is as cheap as it can be.

    Args:
        sums: Costs so far, from 0.
        shards: How many there are to be.
        low: No cut makes the costliest cheaper.
        high: A cost that some cut attains.
    """
    high *= 1 + 1e-9  # what `sums` lose in rounding
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        if _filled(sums, middle, shards) is None:
            low = middle
        else:
            high = middle
    stops = _filled(sums, high, shards) or _quantile_stops(sums, shards)
    while len(stops) < shards:  # full shards may be fewer: halve the costliest
        bounds = [
            (sums[stop] - sums[start], start, stop)
            for start, stop in pairwise([0, *stops])
            if stop - start > 1
        ]
        _, start, stop = max(bounds)
        middle = bisect_left(sums, (sums[start] + sums[stop]) / 2)
        stops = sorted([*stops, min(max(middle, start + 1), stop - 1)])
    return stops


def _filled(sums: Sequence[float], capacity: float, shards: int) -> list[int] | None:
    """Fills one shard after another up to `capacity`; None if that takes too many."""
    stops: list[int] = []
    stop, pieces = 0, len(sums) - 1
    while stop < pieces:
        reached = bisect_right(sums, sums[stop] + capacity) - 1
        if reached <= stop or len(stops) == shards:
            return None
        stop = reached
        stops.append(stop)
    return stops
