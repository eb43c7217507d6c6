from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.errors import DataError
from mloc_dagster.schema.split import SplitPart, parse_split


@pytest.mark.parametrize(
    ("text", "total", "expected"),
    [
        ("train", 10, [range(10)]),
        ("train[:3]", 10, [range(3)]),
        ("train[:200]", 10, [range(10)]),
        ("train[10%:20%]", 50, [range(5, 10)]),
        ("[-3:]", 10, [range(7, 10)]),
        ("train[-10%:]", 30, [range(27, 30)]),
        ("train[60:100]", 80, [range(60, 80)]),
        ("train[:2] + test[:1]", 10, [range(2), range(1)]),
        ("train[:0%]+train[20%:]", 10, [range(0), range(2, 10)]),
        ("train[5:-3]", 10, [range(5, 7)]),
        ("train[-300:2]", 10, [range(2)]),
        ("train[:5%](pct1_dropremainder)", 250, [range(10)]),
    ],
)
def test_slices(text: str, total: int, expected: list[range]) -> None:
    assert [part.resolve(total) for part in parse_split(text)] == expected


def test_a_bare_slice_names_no_split() -> None:
    assert parse_split("[-50:]") == (SplitPart(split=None, start=-50),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train[",
        "train[1]",
        "train[1.5:3]",
        "train[:5%:]",
        "train[::2]",
        "train[ :5]",
        "train test",
        "+train",
        "train++test",
        "train[:5]+",
        f"train[:{10**30}]",
        "train[0.5%:]",
        "train[a:b]",
        "train+",
        "train[:10](floor)",
        "train[:101%]",
        "train[:5](closest)",
        "train[_:]",
        "tr-ain",
        "[:5%](up)",
    ],
)
def test_what_is_no_split_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="split"):
        parse_split(text)


@pytest.mark.parametrize(
    "text",
    [
        *("train[10:5]", "train[5:5]", "[:0]", "train[:-0%]", "train[-5:-9]", "train[100%:]"),
        *("train[-5:0]", "train[:-100%]", "train[80%:-30%]", "train[:0]+test[3:2]"),
    ],
)
def test_what_can_have_no_row_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"is always empty.*expected a form such as"):
        parse_split(text)


def test_the_error_shows_how_a_split_is_written() -> None:
    with pytest.raises(DataError, match=r"'train\[:200\]'.*'\[-50:\]'"):
        parse_split("train[:half]")


def test_dropping_the_remainder_needs_a_hundred_rows() -> None:
    with pytest.raises(DataError, match="at least 100 rows; the split has 99"):
        parse_split("train[:5%](pct1_dropremainder)")[0].resolve(99)


def _bounds(limit: int) -> st.SearchStrategy[int | None]:
    return st.none() | st.integers(-limit, limit)


@settings(deadline=None)
@given(
    st.booleans().flatmap(
        lambda percent: st.tuples(
            st.just(percent), _bounds(100 if percent else 3000), _bounds(100 if percent else 3000)
        )
    ),
    st.integers(0, 2500),
)
def test_rows_are_those_that_datasets_would_give(
    slice_: tuple[bool, int | None, int | None], total: int
) -> None:
    datasets = pytest.importorskip("datasets")
    percent, start, stop = slice_
    sign = "%" if percent else ""
    low, high = ("" if bound is None else f"{bound}{sign}" for bound in (start, stop))
    text = f"train[{low}:{high}]"

    (expected,) = datasets.ReadInstruction.from_spec(text).to_absolute({"train": total})

    try:
        (part,) = parse_split(text)
    except DataError:  # of a slice that is always empty
        assert expected.from_ >= expected.to
        return
    assert part.resolve(total) == range(expected.from_, expected.to)
    assert parse_split(str(part)) == (part,)
