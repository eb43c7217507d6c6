"""One suite for every kind of result store: a local disk, memory, and an S3 API."""

from __future__ import annotations

import gc
import io
import json
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mloc_dagster.errors import IncompleteResultsError, InputError
from mloc_dagster.planning import Chunk, Plan, cut_shards
from mloc_dagster.results import (
    Folder,
    OutputRow,
    ResultStore,
    ShardWriter,
    aggregate_rows,
    export_results,
    finished_rows,
    open_store,
    read_rows,
    verify_manifest,
    write_manifest,
)

_STARTED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "results")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return request.getfixturevalue("s3_url")


@pytest.fixture(params=["at once", "staged"])
def store(url: str, request: pytest.FixtureRequest) -> ResultStore:
    store = open_store(url)
    return store.staged() if request.param == "staged" else store


@pytest.fixture
def folder(store: ResultStore) -> Folder:
    return store.task("task-1")


def _plan(rows: int, shards: int) -> Plan:
    return Plan(
        task_id="task-1",
        source="a list",
        rows=rows,
        data_version="d" * 64,
        seed=1,
        chunks=(Chunk(name="input/0.jsonl", start=0, rows=rows),),
        shards=tuple(cut_shards("task-1", rows, shards)),
    )


def _row(index: int, **changes: object) -> OutputRow:
    fields = {"prompt_tokens": 2, "completion_tokens": 3, "latency_s": 0.1, "engine": "echo 1"}
    return OutputRow(index, f"question {index}", f"answer {index}", **{**fields, **changes})


def _write_rows(folder: Folder, plan: Plan, *, skip: set[int] = frozenset()) -> None:
    for shard in plan.shards:
        with ShardWriter(folder, shard, 1, flush_rows=4, flush_interval_s=60) as writer:
            for index in reversed(range(shard.start, shard.stop)):
                if index not in skip:
                    writer.write(_row(index))


# Files


def test_nothing_exists_before_the_first_write(store: ResultStore, folder: Folder) -> None:
    assert folder.list() == []
    assert folder.list("shards", recursive=True) == []
    assert not folder.exists("task.json")
    assert list(store.task_ids()) == []


def test_a_written_file_reads_back_and_is_replaced_whole(folder: Folder) -> None:
    folder.write_bytes("logs/a.txt", b"first, and longer")
    folder.write_bytes("logs/a.txt", b"second")

    assert folder.read_bytes("logs/a.txt") == b"second"
    assert folder.size("logs/a.txt") == 6
    assert folder.exists("logs/a.txt")
    assert folder.exists("logs")


def test_an_empty_file_is_a_file(folder: Folder) -> None:
    folder.write_bytes("a", b"")
    with folder.create("b"):
        pass

    assert [folder.read_bytes(name) for name in ("a", "b")] == [b"", b""]
    assert folder.list() == ["a", "b"]


def test_listing_shows_names_that_open_as_they_are(folder: Folder) -> None:
    for name in ("shards/0001/b", "shards/0000/a", "task.json", "shards/0000/c d#1"):
        folder.write_bytes(name, b"x")

    assert folder.list() == ["shards", "task.json"]
    assert folder.list("shards") == ["shards/0000", "shards/0001"]
    below = folder.list("shards", recursive=True)
    assert below == ["shards/0000/a", "shards/0000/c d#1", "shards/0001/b"]
    assert [folder.read_bytes(name) for name in below] == [b"x"] * 3


def test_listing_a_file_shows_nothing_below_it(folder: Folder) -> None:
    folder.write_bytes("a", b"x")
    assert folder.list("a", recursive=False) == []


def test_a_file_that_another_store_object_wrote_is_listed_at_once(url: str) -> None:
    reader = open_store(url).task("task-1")
    assert reader.list() == []
    open_store(url).task("task-1").write_bytes("new", b"x")
    assert reader.list() == ["new"]


@pytest.mark.parametrize("read", ["read_bytes", "size"])
def test_a_missing_file_is_file_not_found(folder: Folder, read: str) -> None:
    with pytest.raises(FileNotFoundError):
        getattr(folder, read)("nothing")
    with pytest.raises(FileNotFoundError), folder.open("nothing"):
        pass


def test_deleting_takes_a_file_or_a_folder_and_minds_no_absence(folder: Folder) -> None:
    for name in ("a", "b/1", "b/c/2", "bb"):
        folder.write_bytes(name, b"x")
    for name in ("a", "b", "nothing"):
        folder.delete(name)
    assert folder.list(recursive=True) == ["bb"]


# Streams


def test_a_stream_appears_when_its_block_ends(folder: Folder) -> None:
    block = bytes(range(256)) * 4096
    with folder.create("big") as file:
        for _ in range(20):  # 20 MiB: more than one part of an upload
            file.write(block)
        assert not folder.exists("big")
        assert folder.list() == []

    assert folder.size("big") == 20 * len(block)
    with folder.open("big") as file:
        assert file.read(len(block)) == block
        file.seek(-3, io.SEEK_END)
        assert file.read() == block[-3:]


@pytest.mark.parametrize("size", [10, 20 << 20])
def test_a_stream_that_fails_leaves_what_was_there_before(folder: Folder, size: int) -> None:
    folder.write_bytes("a", b"before")

    def write() -> None:
        with folder.create("a") as file:
            file.write(b"x" * size)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    gc.collect()  # a forgotten upload must not complete itself

    assert folder.read_bytes("a") == b"before"
    assert folder.list(recursive=True) == ["a"]


def test_lines_of_a_stream_can_be_read(folder: Folder) -> None:
    folder.write_bytes("a", b"one\ntwo\n")
    with folder.open("a") as file:
        assert list(file) == [b"one\n", b"two\n"]


def test_two_readers_do_not_disturb_each_other(folder: Folder) -> None:
    folder.write_bytes("a", b"0123456789")
    with folder.open("a") as one, folder.open("a") as two:
        assert (one.read(3), two.read(5), one.read(3)) == (b"012", b"01234", b"345")


def test_readers_see_the_old_or_the_new_but_no_mixture(folder: Folder) -> None:
    contents = [letter * 50_000 for letter in (b"a", b"b")]
    folder.write_bytes("a", contents[0])
    done = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(folder.read_bytes("a"))

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(20):
        folder.write_bytes("a", contents[turn % 2])
    done.set()
    reader.join()

    assert seen <= set(contents)


# Names


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "a/../b", "../a", "a//b", "./a", "a\\b", "a\0b", ".tmp-1/a"],
)
def test_a_name_that_could_leave_the_folder_is_refused(folder: Folder, name: str) -> None:
    for use in (folder.read_bytes, folder.exists, folder.delete, folder.store.folder):
        with pytest.raises(InputError, match="no name inside"):
            use(name)


@pytest.mark.parametrize("task_id", ["", ".", "..", ".hidden", "a/b", "a b", "ä", "x" * 201, "a\n"])
def test_what_is_no_task_id_is_refused(store: ResultStore, task_id: str) -> None:
    with pytest.raises(InputError, match="no task id"):
        store.task(task_id)


def test_tasks_are_the_folders_with_a_submission(store: ResultStore) -> None:
    for task_id in ("b", "a"):
        store.task(task_id).write_bytes("task.json", b"{}")
    store.folder("copies/of/results").write_bytes("responses.json", b"{}")

    assert list(store.task_ids()) == ["a", "b"]


def test_the_latest_task_comes_first(store: ResultStore) -> None:
    assert list(store.newest("summary.json")) == []
    for task_id in ("b", "c", "a"):
        store.task(task_id).write_bytes("summary.json", b"{}")
        while next(store.newest("summary.json")).name != task_id:  # clocks tick coarsely
            store.task(task_id).write_bytes("summary.json", b"{}")
    store.task("unfinished").write_bytes("task.json", b"{}")
    assert [each.name for each in store.newest("summary.json")] == ["a", "c", "b"]
    assert [each.name for each in store.newest("summary.json", among=2)] == ["a", "b"]


# Rows, aggregate, export, manifest


def test_a_killed_shard_resumes_with_what_is_missing(folder: Folder) -> None:
    plan = _plan(20, 2)
    first, second = plan.shards

    def write() -> None:
        with ShardWriter(folder, first, 1, flush_rows=4, flush_interval_s=60) as writer:
            for index in (0, 3, 1, 7, 5):
                writer.write(_row(index))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()

    finished = finished_rows(folder, first)
    assert finished.count == 5
    assert list(finished.missing()) == [2, 4, 6, 8, 9]
    assert 7 in finished
    assert 8 not in finished
    assert 10 not in finished
    assert finished_rows(folder, second).count == 0

    with ShardWriter(folder, first, 2, flush_rows=4, flush_interval_s=60) as writer:
        for index in finished.missing():
            writer.write(_row(index))
    assert [row.index for row in read_rows(folder)] == list(range(10))


def test_a_range_of_rows_crosses_shards(folder: Folder) -> None:
    _write_rows(folder, _plan(20, 4))
    assert [row.index for row in read_rows(folder, 3, 12)] == list(range(3, 12))


def test_from_shards_to_a_complete_manifest(folder: Folder) -> None:
    plan = _plan(21, 3)
    folder.write_bytes("task.json", b"{}")
    folder.write_bytes("input/0.jsonl", b"input")
    _write_rows(folder, plan)

    summary = aggregate_rows(folder, plan, model="echo", worker_id="host:1", started_at=_STARTED)
    names = export_results(folder, plan, ["json", "parquet", "jsonl", "csv"], model="echo")
    required = ["responses.json", "responses.parquet", "checkpoints"]
    manifest = write_manifest(folder, required)

    document = json.loads(folder.read_bytes("responses.json"))
    assert document["task_id"] == "task-1"
    assert [item["output"] for item in document["result"]["items"]] == [
        f"answer {index}" for index in range(21)
    ]
    assert summary.usage.total_tokens == document["result"]["usage"]["total_tokens"] == 105
    assert names == ["responses.parquet", "responses.jsonl", "responses.csv"]
    table = pq.read_table(io.BytesIO(folder.read_bytes("responses.parquet")))
    assert table["index"].to_pylist() == list(range(21))
    assert table["shard"].to_pylist() == [0] * 7 + [1] * 7 + [2] * 7
    entries = {entry.path: entry for entry in manifest.entries}
    assert entries["shards"].type == "directory"
    assert entries["checkpoints"].status == "missing"
    assert entries["responses.json"].required
    assert verify_manifest(folder) == ()


def test_writing_the_same_results_twice_changes_nothing(folder: Folder) -> None:
    plan = _plan(9, 2)
    _write_rows(folder, plan)

    def write_all() -> dict[str, bytes]:
        aggregate_rows(folder, plan, model="echo", worker_id="host:1", started_at=_STARTED)
        export_results(folder, plan, ["parquet", "csv"], model="echo")
        write_manifest(folder, ["responses.json"])
        return {name: folder.read_bytes(name) for name in folder.list(recursive=True)}

    assert write_all() == write_all()


def test_missing_rows_are_named_and_leave_no_results(folder: Folder) -> None:
    plan = _plan(40, 4)
    _write_rows(folder, plan, skip={3, *range(20, 30)})

    with pytest.raises(IncompleteResultsError) as caught:
        aggregate_rows(folder, plan, model="echo", worker_id="host:1", started_at=_STARTED)
    with pytest.raises(IncompleteResultsError):
        export_results(folder, plan, ["parquet", "csv"], model="echo")

    text = str(caught.value)
    assert "29 of 40 rows" in text
    assert "shard 0000 lacks 1 (3)" in text
    assert "shard 0002 lacks 10 (20, 21, 22, …)" in text
    assert folder.list() == ["shards"]
