from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.errors import DamagedFileError, IncompleteResultsError
from mloc_dagster.planning import Shard, cut_shards
from mloc_dagster.results.part_files import Part, finished_rows, read_rows, read_shard
from mloc_dagster.results.rows import Message, OutputRow
from mloc_dagster.results.shard_files import ShardWriter
from mloc_dagster.results.store import Folder, open_store

_SHARD = Shard(task_id="t", index=0, total=1, start=0, stop=100)


@pytest.fixture
def folder() -> Folder:
    return _new_folder()


def _new_folder() -> Folder:
    return open_store(f"memory://{uuid.uuid4().hex}").task("t")


def _writer(folder: Folder, attempt: int = 1, *, rows: int = 8, interval_s: float = 60):
    return ShardWriter(folder, _SHARD, attempt, flush_rows=rows, flush_interval_s=interval_s)


def _row(index: int, output: str = "x", error: str | None = None) -> OutputRow:
    return OutputRow(index, "prompt", output, error=error)


def _parts(folder: Folder) -> list[str]:
    return folder.list("shards", recursive=True)


def test_rows_come_back_as_they_went_in(folder: Folder) -> None:
    chat = [Message("user", [{"type": "text", "text": "hé\n\u2028"}])]
    rows = [
        OutputRow(0, chat, "a\nb", outputs=["a\nb", "c"], prompt_tokens=3, latency_s=0.25),
        OutputRow(1, "p", "", "error", error="too long", attempt=2, worker="h:1", engine="e 1"),
    ]
    with _writer(folder) as writer:
        for row in rows:
            writer.write(row)
    assert list(read_shard(folder, _SHARD)) == rows


def test_a_part_is_written_as_soon_as_it_is_full(folder: Folder) -> None:
    with _writer(folder, rows=3) as writer:
        for index in (5, 2, 9, 1):
            writer.write(_row(index))
        (name,) = _parts(folder)
        assert name.startswith("shards/0000/part-000000000002-000000000009-01-")
    assert len(_parts(folder)) == 2


def test_a_lone_row_is_written_in_time(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    written = threading.Event()
    write_bytes = folder.write_bytes

    def watch(name: str, data: bytes) -> None:
        write_bytes(name, data)
        written.set()

    monkeypatch.setattr(folder, "write_bytes", watch)
    with _writer(folder, interval_s=0.02) as writer:
        for index in range(3):
            writer.write(_row(index))
            assert written.wait(30)
            written.clear()
            assert index in finished_rows(folder, _SHARD)


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_finished_rows_outlive_what_ended_the_shard(
    folder: Folder, interruption: type[BaseException]
) -> None:
    def run() -> None:
        with _writer(folder) as writer:
            writer.write(_row(4))
            raise interruption

    with pytest.raises(interruption):
        run()
    assert [row.index for row in read_shard(folder, _SHARD)] == [4]


def test_rows_wait_for_a_store_that_fails_once(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = folder.write_bytes
    failures = [OSError("the store is away")]

    def fail_once(name: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        write_bytes(name, data)

    monkeypatch.setattr(folder, "write_bytes", fail_once)
    with _writer(folder, rows=2) as writer:
        writer.write(_row(0))
        with pytest.raises(OSError, match="away"):
            writer.write(_row(1))
    assert [row.index for row in read_shard(folder, _SHARD)] == [0, 1]


def test_a_failure_in_the_background_reaches_the_next_write(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = threading.Event()

    def fail(name: str, data: bytes) -> None:
        failed.set()
        raise OSError("the store is away")

    def write_until_refused() -> None:
        for index in range(100):
            failed.clear()
            writer.write(_row(index))
            assert failed.wait(30)

    with _writer(folder, rows=1000, interval_s=0.01) as writer, monkeypatch.context() as patch:
        patch.setattr(folder, "write_bytes", fail)
        with pytest.raises(OSError, match="away"):
            write_until_refused()
        assert list(read_rows(folder)) == []
    assert 0 in finished_rows(folder, _SHARD)


def test_threads_share_a_writer(folder: Folder) -> None:
    with _writer(folder, rows=3) as writer, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: writer.write(_row(index)), range(100)))
    assert [row.index for row in read_rows(folder)] == list(range(100))


def test_a_row_of_another_shard_is_refused(folder: Folder) -> None:
    with _writer(folder) as writer, pytest.raises(ValueError, match="row 100 is not in shard 0000"):
        writer.write(_row(100))


def test_a_row_with_an_error_is_finished_unless_errors_are_retried(folder: Folder) -> None:
    with _writer(folder) as writer:
        writer.write(_row(0))
        writer.write(_row(1, "", "boom"))
    assert finished_rows(folder, _SHARD).count == 2

    retried = finished_rows(folder, _SHARD, retry_errors=True)
    assert (0 in retried, 1 in retried, len(retried)) == (True, False, 1)


def test_a_row_without_an_error_wins_whichever_attempt_wrote_it(folder: Folder) -> None:
    for attempt, outcomes in ((1, ["boom", None]), (2, [None, "boom"])):
        with _writer(folder, attempt) as writer:
            for index, error in enumerate(outcomes):
                writer.write(_row(index, f"attempt {attempt}", error))
    assert [row.output for row in read_rows(folder)] == ["attempt 2", "attempt 1"]


def test_a_damaged_part_is_named(folder: Folder) -> None:
    with _writer(folder) as writer:
        writer.write(_row(0))
    (name,) = _parts(folder)
    folder.write_bytes(name, b'{"index": 0, "pro')
    with pytest.raises(IncompleteResultsError, match=f"{name} is damaged"):
        list(read_rows(folder))


def _note(damaged: list[Part], part: Part, _: DamagedFileError) -> None:
    damaged.append(part)


@given(place=st.integers(0, 10_000), value=st.integers(0, 255), keep=st.integers(0, 3))
def test_a_part_with_a_changed_byte_or_without_its_last_rows_is_noticed(
    place: int, value: int, keep: int
) -> None:
    folder = _new_folder()
    with _writer(folder) as writer:
        for index in range(3):
            writer.write(_row(index, f"row {index}"))
    (name,) = _parts(folder)
    data = folder.read_bytes(name)
    changed = bytearray(data)
    changed[place % len(data)] = value
    for other in (bytes(changed), b"".join(data.splitlines(keepends=True)[:keep])):
        folder.write_bytes(name, other)
        damaged: list[Part] = []
        finished = finished_rows(folder, _SHARD, on_damaged=partial(_note, damaged))
        heard = [part.name for part in damaged]
        if other == data:
            assert (finished.count, heard) == (3, [])
        else:
            assert (finished.count, heard) == (0, [name])
            with pytest.raises(DamagedFileError, match=f"{name} is damaged"):
                list(read_rows(folder))


def test_parts_of_earlier_versions_are_read(folder: Folder) -> None:
    with _writer(folder) as writer:
        writer.write(_row(0))
    (name,) = _parts(folder)
    older = f"shards/0000/part-{0:012d}-{0:012d}-01-6b1295b0.jsonl"
    folder.write_bytes(older, folder.read_bytes(name))
    folder.delete(name)
    assert list(read_rows(folder)) == [_row(0)]


def test_parts_are_opened_only_when_their_rows_are_due(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _writer(folder, rows=10) as writer:
        for index in range(100):
            writer.write(_row(index))
    opened: list[str] = []
    read_bytes = folder.read_bytes

    def watch(name: str) -> bytes:
        opened.extend([name] if name.startswith("shards/") else [])
        return read_bytes(name)

    monkeypatch.setattr(folder, "read_bytes", watch)
    rows = read_rows(folder, start=35)
    assert next(rows).index == 35
    assert len(opened) == 1
    assert [row.index for row in read_rows(folder, 90, 92)] == [90, 91]
    assert len(opened) == 2


_parts_strategy = st.lists(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=1, max_size=12), max_size=12
)


@settings(deadline=None)
@given(parts=_parts_strategy, shards=st.integers(1, 4), data=st.data())
def test_any_parts_give_each_index_once_and_in_order(
    parts: list[list[tuple[int, bool]]], shards: int, data: st.DataObject
) -> None:
    folder = _new_folder()
    cut = cut_shards("t", 31, shards)
    good: set[int] = set()
    seen: set[int] = set()
    for attempt, part in enumerate(parts):
        for shard in cut:
            with ShardWriter(folder, shard, attempt, flush_rows=100, flush_interval_s=60) as writer:
                for index, failed in part:
                    if shard.start <= index < shard.stop:
                        writer.write(_row(index, error="boom" if failed else None))
                        seen.add(index)
                        good |= set() if failed else {index}
    start = data.draw(st.integers(0, 31))
    stop = data.draw(st.none() | st.integers(0, 31))

    rows = list(read_rows(folder))
    assert [row.index for row in rows] == sorted(seen)
    assert {row.index for row in rows if row.error is None} == good
    assert list(read_rows(folder, start, stop)) == [
        row for row in rows if start <= row.index and (stop is None or row.index < stop)
    ]
    for shard in cut:
        indexes = set(range(shard.start, shard.stop))
        assert indexes - set(finished_rows(folder, shard).missing()) == indexes & seen
