"""Balanced shards: cutting rows by expected cost, in an order that shares common beginnings.

Lexicographic order of what the model reads walks the tree of all prompts' beginnings depth
first. Every beginning is then read in one go, so that whatever a prefix cache evicts (the oldest
first) is never needed again: no other order finds more in a cache that holds one prompt.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class CostWeights:
    """How an engine spends its time.

    Attributes:
        prefill: Cost of a prompt token that is not in the prefix cache.
        decode: Cost of a token that is written. Writing goes one step a token and reading all
            tokens at once; what a batch makes of that depends on the machine, so that this is a
            guess and balances no better than it.
        block_tokens: The prefix cache keeps blocks of so many tokens; 0 where there is none.
    """

    prefill: float = 1.0
    decode: float = 4.0
    block_tokens: int = 16


@dataclass(frozen=True, slots=True)
class RowLoad:
    """What one row asks of an engine.

    Attributes:
        prompt_tokens: Tokens that the model reads.
        cached_tokens: How many of them are expected in the prefix cache.
        output_tokens: Tokens that it is expected to write.
        cost: Expected cost, at least 1: also a row that is not computed is read and written.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    cost: float


def row_load(
    prompt_tokens: int,
    shared_tokens: int,
    output_tokens: int,
    weights: CostWeights,
    *,
    copied: bool = False,
) -> RowLoad:
    """Returns what a row asks of an engine that has just read the row before it.

    Args:
        prompt_tokens: Tokens of its prompt.
        shared_tokens: How many the row before has too.
        output_tokens: Tokens that it is expected to write.
        weights: How the engine spends its time.
        copied: Whether its answer is taken from the row before.
    """
    if copied:
        return RowLoad(0, 0, 0, 1.0)
    cached = 0
    if weights.block_tokens:
        # An engine reads at least the last token, to know what follows.
        findable = min(shared_tokens, prompt_tokens - 1)
        cached = max(findable, 0) // weights.block_tokens * weights.block_tokens
    cost = (prompt_tokens - cached) * weights.prefill + output_tokens * weights.decode
    return RowLoad(prompt_tokens, cached, output_tokens, max(cost, 1.0))


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


_FIRST_STEP = 64  # most neighbours differ earlier; comparing so much is one memcmp


class RowKey(NamedTuple):
    """Where a row belongs in the order; rows with equal keys have the same input.

    Attributes:
        adapter: Name of the adapter that answers it; caches never share across adapters.
        text: What the model reads, as far as it is known before an engine renders it.
        rest: Tells rows with the same text apart: options, the form of the prompt.
    """

    adapter: str
    text: str
    rest: bytes = b""


def planned_order(keys: Sequence[RowKey]) -> list[int]:
    """Returns the positions of `keys` in their planned order; equal keys keep theirs."""
    return sorted(range(len(keys)), key=keys.__getitem__)


def shared_beginnings(keys: Sequence[RowKey]) -> Iterator[int]:
    """Yields for each key how many characters of its text the key before it begins with too."""
    if keys:
        yield 0
    for before, key in pairwise(keys):
        yield common_length(before.text, key.text) if before.adapter == key.adapter else 0


def common_length(left: str, right: str) -> int:
    """Returns the length of the longest common beginning, comparing slices and no characters."""
    limit = min(len(left), len(right))
    low, step = 0, _FIRST_STEP
    while low < limit and left[low : low + step] == right[low : low + step]:
        low, step = low + step, step * 2
    high = min(low + step, limit)
    low = min(low, limit)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def tokens_along(
    lengths: Sequence[int], shared: Sequence[int], tail_tokens: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yields each row's prompt tokens, and how many of them it shares with the row before.

    Only what a row does not share is ever tokenized; the tokens of its beginning are known from
    the rows before it, and interpolated where that beginning ends within one of their tails.

    Args:
        lengths: Characters of each row's text, in planned order.
        shared: How many of them the row before has too.
        tail_tokens: Tokens of the others.
    """
    # (characters, tokens) where the beginnings of the row before end, shortest first.
    marks = [(0, 0)]
    for length, common, tail in zip(lengths, shared, tail_tokens, strict=True):
        while len(marks) > 1 and marks[-2][0] >= common:
            marks.pop()
        if len(marks) > 1:
            (from_characters, from_tokens), (characters, tokens) = marks[-2:]
            part = (common - from_characters) / (characters - from_characters)
            marks[-1] = (common, from_tokens + round((tokens - from_tokens) * part))
        known = marks[-1][1]
        if length > common:
            marks.append((length, known + tail))
        yield known + tail, known
