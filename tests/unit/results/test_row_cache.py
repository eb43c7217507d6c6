"""The row cache: what is put in comes out under its own key only, whatever happens to files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.results import row_cache
from mloc_dagster.results.row_cache import (
    DamagedSegmentError,
    RowCache,
    pack_segment,
    prune,
    read_index,
    read_record,
    read_records,
)
from mloc_dagster.results.rows import OutputRow, TokenLogprob
from mloc_dagster.results.store import Folder, open_store


def key(name: object) -> bytes:
    return hashlib.sha256(str(name).encode()).digest()


@pytest.fixture(params=["disk", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Any) -> Folder:
    url = str(tmp_path) if request.param == "disk" else f"memory://{tmp_path.name}"
    return open_store(url).folder("cache")


class Log(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


Open = Callable[..., RowCache]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def open_cache(root: Folder, log: Log) -> Open:
    def make(scope: str = "model", **options: Any) -> RowCache:
        return RowCache(root, scope, log, **options)

    return make


def fill(cache: RowCache, *names: object) -> None:
    for name in names:
        cache.add(key(name), OutputRow(index=7, prompt="p", output=f"answer {name}"))
    cache.close()


def outputs(cache: RowCache, *names: object) -> dict[object, str]:
    found = cache.look_up(key(name) for name in names)
    return {name: found[key(name)].output for name in names if key(name) in found}


def test_a_row_comes_back_whole_but_for_what_is_not_the_answer(open_cache: Open) -> None:
    row = OutputRow(
        index=3,
        prompt="secret",
        output="o",
        outputs=["o", "p"],
        prompt_tokens=4,
        completion_tokens=5,
        engine="vllm 1",
        custom_id="mine",
        embedding=[0.1, 1 / 3, -2e-30],
        logprobs=[[TokenLogprob("t", -0.5, [("t", -0.5)])]],
        engine_s=0.75,
    )
    with_row = open_cache()
    with_row.add(key("x"), row)
    with_row.close()
    back = open_cache().look_up([key("x")])[key("x")]
    assert (back.index, back.prompt, back.custom_id) == (0, "", None)
    for name in ("output", "outputs", "embedding", "logprobs", "engine", "engine_s"):
        assert getattr(back, name) == getattr(row, name)


def test_only_what_was_asked_for_and_only_of_this_model(open_cache: Open) -> None:
    fill(open_cache(), "a", "b")
    assert outputs(open_cache(), "a", "c") == {"a": "answer a"}
    assert outputs(open_cache("other"), "a") == {}


def test_rows_with_errors_are_not_kept(open_cache: Open, root: Folder) -> None:
    cache = open_cache()
    cache.add(key("a"), OutputRow(index=0, prompt="", error="broken"))
    cache.close()
    assert root.list(recursive=True) == []


def test_keys_that_begin_alike_are_told_apart(open_cache: Open) -> None:
    one, other, third = (b"12345678" + bytes([last]) * 24 for last in range(3))
    cache = open_cache()
    cache.add(one, OutputRow(index=0, prompt="", output="one"))
    cache.add(other, OutputRow(index=0, prompt="", output="other"))
    cache.close()
    found = open_cache().look_up([one, other, third])
    assert {each: row.output for each, row in found.items()} == {one: "one", other: "other"}


@pytest.mark.parametrize("place", [0, 9, 25, 40, -1, -30])
def test_a_damaged_segment_gives_nothing_wrong(
    open_cache: Open, root: Folder, log: Log, place: int
) -> None:
    fill(open_cache(), "a", "b")
    (name,) = root.list(recursive=True)
    data = bytearray(root.read_bytes(name))
    data[place] ^= 1
    root.write_bytes(name, bytes(data))
    cache = open_cache()
    right = {"a": "answer a", "b": "answer b"}.items()
    assert outputs(cache, "a", "b").items() <= right
    assert outputs(cache, "a", "b").items() <= right
    assert len(log) == 1
    assert name in log[0]


def test_a_segment_that_is_cut_off_gives_nothing_wrong(
    open_cache: Open, root: Folder, log: Log
) -> None:
    fill(open_cache(), "a", "b")
    (name,) = root.list(recursive=True)
    data = root.read_bytes(name)
    for size in range(0, len(data), 7):
        root.write_bytes(name, data[:size])
        found = outputs(open_cache(), "a", "b")
        assert found.items() <= {"a": "answer a", "b": "answer b"}.items()
    assert log


def test_small_segments_are_merged_and_no_row_is_lost(
    open_cache: Open, root: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "MERGE_AT_SEGMENTS", 5)
    reader = open_cache()
    for number in range(12):
        fill(open_cache(), number)
        if number == 1:
            assert outputs(reader, 0) == {0: "answer 0"}
    assert len(root.list(recursive=True)) < 5
    assert outputs(open_cache(), *range(12)) == {n: f"answer {n}" for n in range(12)}
    assert outputs(reader, 1) == {}  # its segments are gone: a miss, and no error


def test_many_writers_do_not_disturb_each_other(open_cache: Open) -> None:
    writers = [open_cache() for _ in range(6)]
    for number, writer in enumerate(writers):
        writer.add(key("same"), OutputRow(index=0, prompt="", output="equal"))
        writer.add(key(number), OutputRow(index=0, prompt="", output=f"answer {number}"))
    for writer in writers:
        writer.close()
    assert outputs(open_cache(), "same", *range(6)) == {
        "same": "equal",
        **{n: f"answer {n}" for n in range(6)},
    }


def test_the_oldest_segments_go_first(open_cache: Open, root: Folder) -> None:
    for number in range(4):
        fill(open_cache(f"scope {number % 2}"), number)
    size = sum(root.sizes().values())
    prune(root, size - 1)
    assert outputs(open_cache("scope 0"), 0, 2) == {2: "answer 2"}
    fill(open_cache("scope 1", limit_bytes=1), 9)
    assert root.list(recursive=True) == []


def test_rows_of_a_model_that_changed_meanwhile_are_thrown_away(
    open_cache: Open, root: Folder
) -> None:
    fill(open_cache(valid=lambda: False), "a")
    assert root.list(recursive=True) == []


def test_a_store_that_fails_costs_the_cache_and_not_the_task(
    open_cache: Open, root: Folder, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(root, "write_bytes", refuse)
    cache = open_cache()
    fill(cache, "a")
    fill(cache, "b")
    assert outputs(cache, "a") == {}
    assert len(log) == 1
    assert "disk full" in log[0]


@given(st.dictionaries(st.binary(min_size=32, max_size=32), st.binary(max_size=40), max_size=20))
def test_a_segment_holds_what_was_packed(rows: dict[bytes, bytes]) -> None:
    file = io.BytesIO(pack_segment(rows))
    assert dict(read_records(file)) == rows
    file.seek(0)
    index = read_index(file)
    for each, payload in rows.items():
        assert (each, payload) in [read_record(file, at) for at in index.find(each)]


@given(st.integers(min_value=0), st.integers(0, 7))
def test_any_flipped_bit_is_noticed(place: int, bit: int) -> None:
    rows = {key(number): b"payload %d" % number for number in range(3)}
    data = bytearray(pack_segment(rows))
    data[place % len(data)] ^= 1 << bit
    with pytest.raises(DamagedSegmentError):
        dict(read_records(io.BytesIO(bytes(data))))
