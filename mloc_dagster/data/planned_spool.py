"""Spooling in planned order: rows change places within windows, and their loads are summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from mloc_dagster.data.row_keys import image_count, row_key
from mloc_dagster.planning.balance import LoadLine
from mloc_dagster.planning.cost import CostWeights, row_load
from mloc_dagster.planning.order import RowKey, planned_order, shared_beginnings, tokens_along
from mloc_dagster.planning.plan import Expectation, ShardLoad
from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.rows import SourceRow

WINDOW_ROWS = 1 << 17
WINDOW_BYTES = 64 << 20
"""A window ends with the row that reaches either bound, counting encoded inputs and expected
results: readers hold one window to put results back in input order."""

IMAGE_TOKENS = 576  # a CLIP ViT-L/14 at 336 pixels; balancing needs no better


class CountsTokens(Protocol):
    """Counts tokens of texts.

    Attributes:
        source: Who counts, or how it is estimated, for people.
        counted: Whether it counts.
    """

    @property
    def source(self) -> str:
        """Who counts."""
        ...

    @property
    def counted(self) -> bool:
        """Whether this is no estimate."""
        ...

    def __call__(self, texts: Sequence[str]) -> Sequence[int]:
        """Returns the tokens of each text, without special ones."""
        ...


@dataclass(frozen=True, slots=True)
class RowForecast:
    """What a row is expected to become.

    Attributes:
        output_tokens: Tokens written.
        result_bytes: Encoded size of its result, the input aside.
        repeatable: Whether a row with the same input gets the same answer.
    """

    output_tokens: int
    result_bytes: int
    repeatable: bool


@dataclass(frozen=True, slots=True)
class InputPlanning:
    """How a task's rows are weighed.

    Attributes:
        count_tokens: Counts the tokens of prompts.
        forecast: Says what a row is expected to become.
        weights: How the engine spends its time.
    """

    count_tokens: CountsTokens
    forecast: Callable[[SourceRow], RowForecast]
    weights: CostWeights


@dataclass(frozen=True, slots=True)
class _Spooled:
    line: bytes
    key: RowKey
    images: int
    forecast: RowForecast


class PlannedInput:
    """Puts rows in planned order, one window in memory at a time.

    Attributes:
        windows: The first index of each window so far.

    Args:
        planning: How rows are weighed.
    """

    def __init__(self, planning: InputPlanning) -> None:
        self._planning = planning
        self._loads = LoadLine()
        self.windows: list[int] = []

    def lines(self, rows: Iterable[tuple[SourceRow, bytes]]) -> Iterator[bytes]:
        """Yields the encoded rows in planned order.

        Args:
            rows: Each row with its encoded form, in order of index.
        """
        window: list[_Spooled] = []
        index = size = 0
        for row, line in rows:
            spooled = _Spooled(line, row_key(row), image_count(row), self._planning.forecast(row))
            window.append(spooled)
            index += 1
            size += len(line) + spooled.forecast.result_bytes
            if len(window) >= WINDOW_ROWS or size >= WINDOW_BYTES:
                yield from self._close(window, index)
                window, size = [], 0
        yield from self._close(window, index)

    def cut(self, task_id: str, max_shards: int) -> tuple[tuple[Shard, ...], Expectation]:
        """Cuts all rows into shards of equal expected cost, and says what each is to take."""
        cuts = self._loads.cut(max_shards)
        stops = [0, *(cut.stop for cut in cuts)]
        shards = tuple(
            Shard(task_id=task_id, index=index, total=len(cuts), start=start, stop=stop)
            for index, (start, stop) in enumerate(pairwise(stops))
        )
        weights, count_tokens = self._planning.weights, self._planning.count_tokens
        expected = Expectation(
            tokens=count_tokens.source,
            counted=count_tokens.counted,
            prefill=weights.prefill,
            decode=weights.decode,
            block_tokens=weights.block_tokens,
            shards=tuple(
                ShardLoad(
                    prompt_tokens=cut.prompt_tokens,
                    cached_tokens=cut.cached_tokens,
                    output_tokens=cut.output_tokens,
                    cost=round(cut.cost, 3),
                )
                for cut in cuts
            ),
        )
        return shards, expected

    def _close(self, rows: list[_Spooled], stop: int) -> Iterator[bytes]:
        if not rows:
            return
        self.windows.append(stop - len(rows))
        ordered = [rows[place] for place in planned_order([row.key for row in rows])]
        self._weigh(ordered)
        for row in ordered:
            yield row.line

    def _weigh(self, rows: list[_Spooled]) -> None:
        shared = list(shared_beginnings([row.key for row in rows]))
        tails = [row.key.text[common:] for row, common in zip(rows, shared, strict=True)]
        counts = self._planning.count_tokens(tails)
        lengths = [len(row.key.text) for row in rows]
        before: RowKey | None = None
        for row, (prompt, known) in zip(rows, tokens_along(lengths, shared, counts), strict=True):
            same = row.key == before
            load = row_load(
                prompt + row.images * IMAGE_TOKENS,
                known,
                row.forecast.output_tokens,
                self._planning.weights,
                copied=same and row.forecast.repeatable,
            )
            self._loads.add(load, same=same)
            before = row.key
