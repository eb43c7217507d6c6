from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Container
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from mloc_dagster.data import spool
from mloc_dagster.data.spool import read_input, respool_failed, spool_input
from mloc_dagster.errors import DamagedFileError, DataError
from mloc_dagster.planning import cut_shards
from mloc_dagster.results import Folder, InputRow, OutputRow, ShardWriter, open_store, read_plan
from mloc_dagster.schema import HALF_A_CHARACTER, ChatMessage, DatasetData, ListData, UpstreamData


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_store(str(tmp_path / "results")).task("t")


def numbers(path: Path, rows: int) -> DatasetData:
    path.write_text("".join(f'{{"text": "row {number}"}}\n' for number in range(rows)))
    return DatasetData(type="dataset", url=str(path))


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 150), max_shards=st.integers(1, 64), chunk_rows=st.integers(1, 40))
def test_every_row_reaches_exactly_one_shard(rows: int, max_shards: int, chunk_rows: int) -> None:
    data = ListData(type="list", items=tuple(f"row {number}" for number in range(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "CHUNK_ROWS", chunk_rows)
        folder = open_store("memory://spool-property").task("t")
        folder.delete("plan.json")
        plan = spool_input("t", data, folder, max_shards, 1, {})

    read = [
        row for shard in plan.shards for row in read_input(folder, plan, shard.start, shard.stop)
    ]
    assert read == [InputRow(index=number, prompt=f"row {number}") for number in range(rows)]
    assert plan.rows == rows
    assert len(plan.shards) == min(rows, max_shards)


def test_the_plan_and_the_chunks(folder: Folder, tmp_path: Path) -> None:
    plan = spool_input("t", numbers(tmp_path / "q.jsonl", 2500), folder, 4, 9, {})

    assert [chunk.name for chunk in plan.chunks] == [
        "input/000000000000.jsonl",
        "input/000000001024.jsonl",
        "input/000000002048.jsonl",
    ]
    assert [chunk.rows for chunk in plan.chunks] == [1024, 1024, 452]
    assert plan.source == f"{tmp_path}/q.jsonl train"
    assert (plan.task_id, plan.seed) == ("t", 9)
    assert read_plan(folder) == plan
    first = folder.read_bytes("input/000000000000.jsonl").splitlines()[0]
    assert json.loads(first) == {"index": 0, "prompt": "row 0"}


def test_the_data_version_is_that_of_the_rows(folder: Folder) -> None:
    plan = spool_input("t", ListData(type="list", items=("a", "ö")), folder, 1, 1, {})
    lines = '{"prompt":"a"}\n{"prompt":"ö"}\n'
    assert plan.data_version == hashlib.sha256(lines.encode()).hexdigest()


def test_chats_come_back_as_they_were(folder: Folder) -> None:
    data = ListData(type="list", items=((ChatMessage(role="user", content="Hi"),), "a"))
    plan = spool_input("t", data, folder, 1, 1, {})
    rows = list(read_input(folder, plan, 0, 2))
    assert msgspec.to_builtins(rows[0].prompt) == [{"role": "user", "content": "Hi"}]
    assert rows[1].prompt == "a"


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_lone_surrogate_fails_its_row_alone(
    folder: Folder, tmp_path: Path, *, shuffle: bool
) -> None:
    path = tmp_path / "q.jsonl"
    chat = '{"text": [{"role": "user", "content": "hm \\udc80"}]}'
    texts = [rf'{{"text": "{text}"}}' for text in ("a", r"b \ud800", r"\ud83d\ude00")]
    path.write_text("\n".join([*texts, chat]))
    data = DatasetData(type="dataset", url=str(path), shuffle=shuffle)
    plan = spool_input("t", data, folder, 1, 1, {})
    rows = list(read_input(folder, plan, 0, 4))
    good = [row.prompt for row in rows if row.error is None]
    assert sorted(map(str, good)) == ["a", "😀"]
    failed = [row.prompt for row in rows if row.error is not None]
    assert sorted(each if isinstance(each, str) else str(each[0].content) for each in failed) == [
        r"b \ud800",
        r"hm \udc80",
    ]
    assert {row.error for row in rows} == {None, HALF_A_CHARACTER}


def test_a_resumed_task_keeps_its_input(folder: Folder, tmp_path: Path) -> None:
    data = numbers(tmp_path / "q.jsonl", 10)
    plan = spool_input("t", data, folder, 4, 1, {})
    Path(data.url).unlink()

    assert spool_input("t", data, folder, 8, 2, {}) == plan


def finish(folder: Folder, failed: Container[int], rows: int) -> None:
    for shard in cut_shards("first", rows, 2):
        with ShardWriter(folder, shard, 1, flush_rows=999, flush_interval_s=60) as writer:
            for index in range(shard.start, shard.stop):
                error = "no answer" if index in failed else None
                writer.write(OutputRow(index, "q", "" if error else f"answer {index}", error=error))


@pytest.mark.parametrize("bytes_at_once", [1, 1 << 20])
def test_rows_that_failed_upstream_are_spooled_again_in_their_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_at_once: int
) -> None:
    monkeypatch.setattr(spool, "WINDOW_BYTES", bytes_at_once)
    monkeypatch.setattr(spool, "CHUNK_ROWS", 4)
    store = open_store(str(tmp_path / "results"))
    first, again, then = (store.task(name) for name in ("first", "again", "then"))
    data = UpstreamData(type="upstream", node="a", text="{output}")
    finish(first, {0, 4, 5, 6, 21}, 23)
    finish(again, {6}, 23)
    plan = spool_input("then", data, then, 3, 1, {"a": first})
    then.write_bytes("input/images/a.png", b"of another row")
    untouched = [then.read_bytes(each.name) for each in plan.chunks[2:5]]

    renewed = respool_failed(plan, data, then, {"a": again})

    rows = list(read_input(then, renewed, 0, 23))
    assert [row.index for row in rows] == list(range(23))
    assert [row.index for row in rows if row.error is not None] == [6]
    assert [rows[place].prompt for place in (0, 5, 21)] == ["answer 0", "answer 5", "answer 21"]
    assert (renewed.shards, renewed.rows) == (plan.shards, plan.rows)
    assert [then.read_bytes(each.name) for each in renewed.chunks[2:5]] == untouched
    chunks = sorted(each.name for each in renewed.chunks)
    assert then.list("input") == [*chunks, "input/images"]
    assert then.exists("input/images/a.png")
    assert read_plan(then) == renewed
    fresh = spool_input("then", data, store.task("fresh"), 3, 1, {"a": again})
    assert renewed.data_version == fresh.data_version


def test_an_upstream_task_that_has_other_rows_now_is_no_input(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "results"))
    first, fewer, then = (store.task(name) for name in ("first", "fewer", "then"))
    data = UpstreamData(type="upstream", node="a", text="{output}")
    finish(first, {1}, 5)
    finish(fewer, {}, 4)
    plan = spool_input("then", data, then, 1, 1, {"a": first})
    with pytest.raises(DataError, match="gave 5 rows when the task began, and 4 now"):
        respool_failed(plan, data, then, {"a": fewer})
    assert read_plan(then) == plan


def test_spooling_again_after_an_interruption_starts_over(folder: Folder, tmp_path: Path) -> None:
    folder.write_bytes("input/000000009999.jsonl", b"left over")
    plan = spool_input("t", numbers(tmp_path / "q.jsonl", 3), folder, 1, 1, {})
    assert folder.list("input") == [chunk.name for chunk in plan.chunks]


def test_an_unreadable_row_leaves_no_plan(folder: Folder, tmp_path: Path) -> None:
    data = numbers(tmp_path / "q.jsonl", 1500)
    with Path(data.url).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(DataError, match=r"q\.jsonl:1501: broken JSON"):
        spool_input("t", data, folder, 1, 1, {})
    assert read_plan(folder) is None


@pytest.mark.parametrize("split", ["train[50:]", "train[20:-2]", "train"])
def test_no_rows_is_an_error_that_says_where_from(
    folder: Folder, tmp_path: Path, split: str
) -> None:
    data = numbers(tmp_path / "q.jsonl", 0 if split == "train" else 10)
    data = data.model_copy(update={"split": split, "column": "text"})
    with pytest.raises(DataError) as caught:
        spool_input("t", data, folder, 4, 1, {})
    assert str(caught.value) == (
        f"the input is empty: {tmp_path}/q.jsonl {split} (column text) gave no rows"
    )
    assert not folder.exists("plan.json")


def test_reading_skips_what_is_done_and_opens_only_what_it_needs(
    folder: Folder, tmp_path: Path
) -> None:
    plan = spool_input("t", numbers(tmp_path / "q.jsonl", 3000), folder, 4, 1, {})
    folder.delete("input/000000000000.jsonl")
    folder.delete("input/000000002048.jsonl")

    indexes = [row.index for row in read_input(folder, plan, 1024, 2048, skip={1024, 1030})]

    assert indexes == [number for number in range(1025, 2048) if number != 1030]
    assert list(read_input(folder, plan, 5, 5)) == []


def test_large_rows_make_small_chunks(folder: Folder, tmp_path: Path) -> None:
    path = tmp_path / "q.txt"
    path.write_text("\n".join("x" * (1 << 20) for _ in range(40)))
    data = DatasetData(type="dataset", url=str(path))
    tracemalloc.start()
    plan = spool_input("t", data, folder, 1, 1, {})
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [chunk.rows for chunk in plan.chunks] == [8, 8, 8, 8, 8]
    assert peak_bytes < 30 << 20, "40 MiB of input, held a chunk at a time"


def damage(folder: Folder, name: str) -> None:
    data = bytearray(folder.read_bytes(name))
    place = data.rindex(b"7")  # a figure that stays one
    data[place : place + 1] = b"8"
    folder.write_bytes(name, bytes(data))


def test_a_changed_byte_of_the_spooled_input_reaches_no_row(folder: Folder, tmp_path: Path) -> None:
    plan = spool_input("t", numbers(tmp_path / "q.jsonl", 8), folder, 1, 9, {})
    damage(folder, plan.chunks[0].name)
    with pytest.raises(DamagedFileError, match=r"000\.jsonl is damaged .* --resume t --fresh"):
        list(read_input(folder, plan, 0, 8))


@pytest.mark.parametrize("how", ["a figure", "its end", "all of it"])
def test_a_damaged_plan_is_named(folder: Folder, tmp_path: Path, how: str) -> None:
    spool_input("t", numbers(tmp_path / "q.jsonl", 8), folder, 1, 777, {})
    whole = folder.read_bytes("plan.json")
    if how == "a figure":
        folder.write_bytes("plan.json", whole.replace(b'"seed":777', b'"seed":778'))
    else:
        folder.write_bytes("plan.json", whole[: len(whole) // 2] if how == "its end" else b"")
    with pytest.raises(DamagedFileError) as raised:
        read_plan(folder)
    assert "plan.json is damaged" in str(raised.value)
    assert "mloc run --resume t --fresh" in str(raised.value)
    assert "pydantic" not in str(raised.value)


def test_plans_of_earlier_versions_are_read(folder: Folder, tmp_path: Path) -> None:
    plan = spool_input("t", numbers(tmp_path / "q.jsonl", 8), folder, 1, 9, {})
    folder.write_bytes("plan.json", plan.model_dump_json().encode())
    assert read_plan(folder) == plan
