from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.data.shuffle import shuffle_all, shuffle_window
from mloc_dagster.results import Message, Prompt


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 500), st.integers(), st.sampled_from([20_000, 1 << 26]))
def test_every_row_comes_out_once(rows: int, seed: int, memory_bytes: int) -> None:
    given_rows: list[Prompt] = [str(number) for number in range(rows)]
    assert sorted(shuffle_all(given_rows, seed, memory_bytes)) == sorted(given_rows)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(), st.integers(1, 400))
def test_the_window_gives_every_row_once(rows: int, seed: int, buffer_size: int) -> None:
    shuffled = list(shuffle_window([str(number) for number in range(rows)], seed, buffer_size))
    assert sorted(shuffled) == sorted(str(number) for number in range(rows))
    # Row k cannot come out before rows k - buffer_size + 1 … were seen.
    for place, row in enumerate(shuffled):
        assert int(str(row)) < place + buffer_size


def test_the_order_depends_on_the_seed_and_not_on_the_memory() -> None:
    rows: list[Prompt] = [str(number) for number in range(20_000)]
    in_memory = list(shuffle_all(rows, 7))

    assert list(shuffle_all(rows, 7, memory_bytes=100_000)) == in_memory
    assert list(shuffle_all(rows, 8)) != in_memory
    assert in_memory != rows


def test_the_order_is_the_same_in_every_release() -> None:
    rows = [str(number) for number in range(8)]
    assert list(shuffle_all(rows, 42)) == ["1", "7", "3", "2", "0", "5", "4", "6"]


def test_chat_rows_survive_temporary_files() -> None:
    rows: list[Prompt] = [[Message("user", str(number))] for number in range(100)]
    shuffled = list(shuffle_all(rows, 1, memory_bytes=8000))
    assert sorted(shuffled, key=str) == sorted(rows, key=str)


def test_temporary_files_go_away_even_when_nobody_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    rows = shuffle_all((str(number) for number in range(1000)), 1, memory_bytes=1000)
    next(rows)
    assert list(tmp_path.iterdir())
    rows.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


def test_no_place_is_preferred() -> None:
    firsts = [int(str(next(shuffle_all(list("0123"), seed)))) for seed in range(400)]
    assert all(60 < firsts.count(place) < 140 for place in range(4))
