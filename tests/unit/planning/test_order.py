from __future__ import annotations

from collections import OrderedDict
from random import Random

from hypothesis import given, settings, strategies as st

from mloc_dagster.planning.order import (
    RowKey,
    common_length,
    planned_order,
    shared_beginnings,
    tokens_along,
)

_TEXTS = st.lists(st.text("ab", max_size=8), max_size=30)


def keys(texts: list[str]) -> list[RowKey]:
    return [RowKey("", text) for text in texts]


@given(left=st.text("ab", max_size=300), right=st.text("ab", max_size=300), head=st.text())
def test_the_common_beginning_is_what_characters_say(left: str, right: str, head: str) -> None:
    left, right = head * 40 + left, head * 40 + right
    pairs = zip(left, right, strict=False)
    differ = (place for place, (one, other) in enumerate(pairs) if one != other)
    assert common_length(left, right) == next(differ, min(len(left), len(right)))


@given(texts=_TEXTS)
def test_equal_rows_are_neighbours_and_every_row_is_there_once(texts: list[str]) -> None:
    order = planned_order(keys(texts))
    assert sorted(order) == list(range(len(texts)))
    ordered = [texts[place] for place in order]
    runs = [text for text, before in zip(ordered, [None, *ordered], strict=False) if text != before]
    assert len(runs) == len(set(texts))


@given(texts=_TEXTS, seed=st.integers())
def test_no_order_shares_more_with_the_row_before(texts: list[str], seed: int) -> None:
    rows = keys(texts)
    planned = [rows[place] for place in planned_order(rows)]
    other = list(rows)
    Random(seed).shuffle(other)
    assert sum(shared_beginnings(planned)) >= sum(shared_beginnings(other))


def test_a_small_cache_finds_each_prefix_once_it_was_read() -> None:
    rows = [RowKey("", f"prefix {number % 20:02d} " * 10 + f"q{number}") for number in range(400)]
    Random(3).shuffle(rows)
    assert prefix_misses([rows[place] for place in planned_order(rows)], room=1) == 20
    assert prefix_misses(rows, room=1) > 300


def prefix_misses(rows: list[RowKey], room: int) -> int:
    cache: OrderedDict[str, None] = OrderedDict()
    misses = 0
    for row in rows:
        prefix = row.text[:100]
        misses += prefix not in cache
        cache[prefix] = None
        cache.move_to_end(prefix)
        while len(cache) > room:
            cache.popitem(last=False)
    return misses


def test_adapters_stay_together_and_share_nothing() -> None:
    rows = [RowKey(adapter, "same text") for adapter in ("b", "a", "b", "")]
    ordered = [rows[place] for place in planned_order(rows)]
    assert [row.adapter for row in ordered] == ["", "a", "b", "b"]
    assert list(shared_beginnings(ordered)) == [0, 0, 0, 9]


@settings(deadline=None)
@given(texts=_TEXTS)
def test_tokens_are_known_from_what_rows_do_not_share(texts: list[str]) -> None:
    """With a token per character nothing is interpolated wrongly."""
    rows = keys(sorted(texts))
    lengths = [len(row.text) for row in rows]
    shared = list(shared_beginnings(rows))
    tails = [length - common for length, common in zip(lengths, shared, strict=True)]
    assert list(tokens_along(lengths, shared, tails)) == list(zip(lengths, shared, strict=True))
