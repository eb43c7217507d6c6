from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.planning.order import (
    MAX_OVER_MEAN,
    CostWeights,
    LoadLine,
    RowLoad,
    balanced_stops,
    row_load,
)

_COSTS = st.lists(st.integers(1, 100), min_size=1, max_size=14)


def best_possible(costs: list[int], shards: int) -> float:
    """The costliest shard of the best cut, by trying all."""
    best = {0: 0}
    for _ in range(shards):
        best = {
            stop: min(
                max(worst, sum(costs[start:stop])) for start, worst in best.items() if start <= stop
            )
            for stop in range(len(costs) + 1)
        }
    return best[len(costs)]


@settings(deadline=None)
@given(costs=_COSTS, max_shards=st.integers(1, 6))
def test_the_bound_holds_whenever_some_cut_keeps_it(costs: list[int], max_shards: int) -> None:
    stops = balanced_stops(costs, max_shards)
    shards = min(max_shards, len(costs))
    assert len(stops) == shards
    assert stops[-1] == len(costs)
    assert all(start < stop for start, stop in pairwise([0, *stops]))
    worst = max(sum(costs[start:stop]) for start, stop in pairwise([0, *stops]))
    mean = sum(costs) / shards
    assert worst <= max(MAX_OVER_MEAN * mean, best_possible(costs, shards)) * (1 + 1e-6)


@settings(deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 9)), min_size=1, max_size=40),
    max_shards=st.integers(1, 8),
    max_pieces=st.sampled_from([8, 1 << 18]),
)
def test_every_row_once_and_runs_whole_unless_they_outgrow_a_shard(
    runs: list[tuple[int, int]], max_shards: int, max_pieces: int
) -> None:
    line = LoadLine(max_pieces)
    bounds: dict[int, float] = {}  # places inside a run, and what the run costs
    place = 0
    for cost, rows in runs:
        for row in range(rows):
            line.add(RowLoad(cost, cost // 2, 1, float(cost)), same=row > 0)
            if row:
                bounds[place] = cost * rows
            place += 1
    cuts = line.cut(max_shards)
    total = sum(cost * rows for cost, rows in runs)
    assert cuts[-1].stop == place
    assert [cut.stop for cut in cuts] == sorted({cut.stop for cut in cuts})
    assert len(cuts) <= max_shards
    assert sum(cut.prompt_tokens for cut in cuts) == total
    assert sum(cut.output_tokens for cut in cuts) == place
    assert sum(cut.cost for cut in cuts) == pytest.approx(total)
    if max_pieces > place:
        for cut in cuts[:-1]:
            assert bounds.get(cut.stop, total) > total / max_shards or cut.stop not in bounds


def test_many_rows_take_bounded_memory_and_stay_balanced() -> None:
    line = LoadLine(max_pieces=4096)
    for row in range(50_000):
        line.add(RowLoad(10, 0, 5, 30.0 + row % 7))
    assert len(line._cost) <= 4096
    cuts = line.cut(16)
    assert cuts[-1].stop == 50_000
    assert max(cut.cost for cut in cuts) <= 1.15 * sum(cut.cost for cut in cuts) / 16


def test_one_prompt_many_times_still_fills_all_shards() -> None:
    line = LoadLine()
    for row in range(1000):
        line.add(RowLoad(10, 0, 50, 60.0), same=row > 0)
    rows = [stop - start for start, stop in pairwise([0, *(cut.stop for cut in line.cut(4))])]
    assert len(rows) == 4
    assert max(rows) <= 1.15 * 250


def test_no_rows_or_no_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot cut 0 rows"):
        LoadLine().cut(2)
    line = LoadLine()
    line.add(RowLoad(1, 0, 1, 1.0))
    with pytest.raises(ValueError, match="into 0 shards"):
        line.cut(0)


def test_a_row_costs_what_the_prefix_cache_lacks() -> None:
    weights = CostWeights(prefill=1.0, decode=4.0, block_tokens=16)
    assert row_load(100, 50, 10, weights) == RowLoad(100, 48, 10, 52 + 40)
    # The last token is read in any case: the block that holds it is never found.
    assert row_load(64, 64, 0, weights).cached_tokens == 48
    assert row_load(100, 50, 10, CostWeights(block_tokens=0)).cached_tokens == 0
    assert row_load(100, 100, 10, weights, copied=True) == RowLoad(0, 0, 0, 1.0)
