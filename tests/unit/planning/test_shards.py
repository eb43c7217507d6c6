from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.planning.plan import cut_shards, shard_count


@given(rows=st.integers(1, 100_000), max_shards=st.integers(1, 64))
def test_every_row_is_in_exactly_one_shard(rows: int, max_shards: int) -> None:
    shards = cut_shards("t", rows, max_shards)

    assert len(shards) == min(rows, max_shards)
    assert [shard.start for shard in shards] == [0, *(shard.stop for shard in shards[:-1])]
    assert shards[-1].stop == rows
    assert [shard.index for shard in shards] == list(range(len(shards)))
    assert {shard.total for shard in shards} == {len(shards)}
    sizes = [shard.rows for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_one_row_is_one_shard() -> None:
    (shard,) = cut_shards("t", 1, 64)
    assert (shard.start, shard.stop, shard.key) == (0, 1, "0000")


@pytest.mark.parametrize(("rows", "max_shards"), [(0, 4), (4, 0), (-1, 1)])
def test_nothing_cannot_be_cut(rows: int, max_shards: int) -> None:
    with pytest.raises(ValueError, match=f"cannot cut {rows} rows into {max_shards} shards"):
        cut_shards("t", rows, max_shards)


@pytest.mark.parametrize(
    ("rows", "shards"), [(1, 1), (64, 1), (65, 2), (200, 4), (512, 8), (100_000, 8)]
)
def test_rows_that_share_a_batch_share_a_shard(rows: int, shards: int) -> None:
    assert shard_count(rows, 8, 64) == shards
    # Each of them is at least half full.
    assert rows < 64 or min(each.rows for each in cut_shards("t", rows, shards)) >= 32


def test_rows_of_their_own_are_spread() -> None:
    assert [shard_count(rows, 8) for rows in (1, 5, 200)] == [1, 5, 8]
