from __future__ import annotations

import errno
import io
import json
import os
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mloc_dagster.results import open_store, verify_manifest, write_manifest
from mloc_dagster.wire import LogLine, TaskState
from tests.api_server import STAGES, Served, serving

RESULT = {
    "task_id": "elsewhere-1",
    "worker_id": "w",
    "metadata": {},
    "received_at": "2026-01-02T03:04:05Z",
    "result": {"ok": True, "items": [{"index": 0, "output": "x"}]},
}


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def done(api: Served) -> str:
    """A task that is done, with 10,000 rows."""
    task = api.submit()
    folder = api.folder(task)
    folder.write_bytes("task.json", b"{}")
    folder.write_bytes("responses.json", b'{"result": ' + b"0123456789" * 300_000 + b"}")
    table = pa.table({"index": range(10_000), "output": [f"é{i}" for i in range(10_000)]})
    with folder.create("responses.parquet") as file:
        pq.write_table(table, file, row_group_size=1_000)
    folder.write_bytes("shards/0000/rows.jsonl", b"internal")
    folder.write_bytes("logs/shard-0000.log", b"2026-01-01T00:00:00.000Z hello\n")
    write_manifest(folder, ["responses.json"])
    api.ledger.set(task, state=TaskState.DONE, run_id="r", batch_key="b")
    return task


def test_results_in_ranges(api: Served, done: str) -> None:
    url = f"/api/v1/results/{done}"
    whole = api.client.get(url)
    data = api.folder(done).read_bytes("responses.json")
    assert whole.content == data
    assert whole.headers["content-type"] == "application/json"
    for asked, start, end in (
        ("bytes=0-9", 0, 10),
        ("bytes=1500000-2499999", 1_500_000, 2_500_000),
        ("bytes=2999000-", 2_999_000, len(data)),
        ("bytes=-5", len(data) - 5, len(data)),
        (f"bytes=5-{len(data) * 2}", 5, len(data)),
    ):
        part = api.client.get(url, headers={"Range": asked})
        assert part.status_code == 206
        assert part.content == data[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(data)}"
    beyond = api.client.get(url, headers={"Range": f"bytes={len(data)}-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(data)}")
    for nonsense in ("bytes=9-1", "rows=0-1", "bytes=0-1,3-4", "bytes=-", "bytes=x-"):
        assert api.client.get(url, headers={"Range": nonsense}).content == data
    same = api.client.get(url, headers={"If-None-Match": whole.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    stale = {"Range": "bytes=0-9", "If-Range": '"another"'}
    assert api.client.get(url, headers=stale).status_code == 200


def test_rows_in_other_formats(api: Served, done: str) -> None:
    url = f"/api/v1/results/{done}"
    lines = api.client.get(f"{url}?format=jsonl").text.splitlines()
    assert len(lines) == 10_000
    assert json.loads(lines[-1]) == {"index": 9_999, "output": "é9999"}
    rows = api.client.get(f"{url}?format=csv").text.splitlines()
    assert (rows[0], rows[1], len(rows)) == ("index,output", "0,é0", 10_001)
    parquet = api.client.get(f"{url}?format=parquet").content
    assert pq.read_table(io.BytesIO(parquet)).num_rows == 10_000
    assert api.client.get(f"{url}?format=xml").status_code == 422


def test_a_bundle_holds_what_the_task_left(api: Served, done: str) -> None:
    answer = api.client.get(f"/api/v1/results/{done}?bundle=tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as bundle:
        names = bundle.getnames()
        file = bundle.extractfile(f"{done}/responses.json")
        assert file is not None
        assert file.read() == api.folder(done).read_bytes("responses.json")
    assert f"{done}/manifest.json" in names
    assert not any("shards" in each for each in names)


def test_results_that_are_not_there_yet_say_so(api: Served) -> None:
    task = api.submit()
    answer = api.client.get(f"/api/v1/results/{task}")
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:mloc:not-ready")
    assert "PENDING" in answer.json()["detail"]


def test_files_are_listed_and_read(api: Served, done: str) -> None:
    url = f"/api/v1/results/{done}/files"
    files = {each["name"]: each for each in api.client.get(url).json()["files"]}
    assert "shards/0000/rows.jsonl" not in files
    assert files["responses.json"]["sha256"]
    assert api.client.get(f"{url}/logs/shard-0000.log").text.endswith("hello\n")
    missing = api.client.get(f"{url}/response.json")
    assert (missing.status_code, "did you mean" in missing.json()["detail"]) == (404, True)
    assert api.client.get(f"{url}/logs").status_code == 404


@pytest.mark.parametrize(
    "name",
    ["..%2f..%2fsecret", "%2e%2e/secret", "a%00b", "%5c..%5csecret", "logs//x", "link", "%ff"],
)
def test_names_do_not_leave_the_store(api: Served, done: str, name: str) -> None:
    store = Path(api.folder(done).store.url)
    (store.parent / "secret").write_text("hidden")
    Path(api.folder(done).url, "link").symlink_to(store.parent / "secret")
    answer = api.client.get(f"/api/v1/results/{done}/files/{name}")
    assert answer.status_code in (404, 422)
    assert "hidden" not in answer.text
    listed = api.client.get(f"/api/v1/results/{done}/files").json()["files"]
    assert "link" not in {each["name"] for each in listed}


def test_a_result_comes_in_once(api: Served) -> None:
    first = api.client.post("/api/v1/results", json=RESULT)
    again = api.client.post("/api/v1/results", json=RESULT)
    changed = api.client.post("/api/v1/results", json={**RESULT, "result": {"ok": False}})

    assert [each.status_code for each in (first, again, changed)] == [201, 200, 201]
    assert [each.json()["stored"] for each in (first, again, changed)] == [True, False, True]
    read = api.client.get("/api/v1/results/elsewhere-1").json()
    assert read == {**RESULT, "result": {"ok": False}}
    assert verify_manifest(api.folder("elsewhere-1")) == ()


def test_a_result_without_a_time_is_idempotent(api: Served) -> None:
    bare = {"task_id": "bare", "result": {"ok": True}}
    statuses = [api.client.post("/api/v1/results", json=bare).status_code for _ in range(2)]
    assert statuses == [201, 200]


def test_results_of_our_own_tasks_are_not_replaced(api: Served, done: str) -> None:
    answer = api.client.post("/api/v1/results", json={**RESULT, "task_id": done})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:mloc:is-ours")


@pytest.mark.parametrize(
    "body", [{}, {"task_id": "../x", "result": {}}, {"task_id": "x", "result": []}, [], "x"]
)
def test_a_wrong_result_is_422(api: Served, body: object) -> None:
    answer = api.client.post("/api/v1/results", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"


def test_files_come_in_once_and_are_in_the_manifest(api: Served) -> None:
    url = "/api/v1/results/elsewhere-2/files"
    files = [("file", ("plots/a.png", b"png")), ("file", ("b.txt", b"text"))]
    first = api.client.post(url, files=files)
    again = api.client.post(url, files=files)

    assert (first.status_code, again.status_code) == (201, 200)
    assert api.client.get(f"{url}/plots/a.png").content == b"png"
    assert verify_manifest(api.folder("elsewhere-2")) == ()
    wrong = api.client.post(url, files=[("file", ("../up.txt", b"x"))])
    assert wrong.status_code == 422
    ours = api.client.post(url, files=[("file", ("task.json", b"x"))])
    assert ours.status_code == 409
    beside = api.client.post(url, files=[("file", ("b.txt/c", b"x"))])
    assert beside.status_code == 409


def test_logs_are_paged_and_end(api: Served, done: str) -> None:
    folder = api.folder(done)
    api.ledger.set(done, run_id=None)
    text = "".join(f"2026-01-01T00:00:0{n}.000Z line {n}\n" for n in range(5)) + "half"
    folder.write_bytes("logs/shard-0000.log", text.encode())
    url = f"/api/v1/tasks/{done}/logs"
    seen: list[str] = []
    cursor = ""
    while True:
        page = api.client.get(url, params={"limit": 2, "cursor": cursor}).json()
        seen += [each["text"] for each in page["lines"]]
        cursor = page["next_cursor"]
        if page["ended"]:
            break
    assert seen == [*(f"line {n}" for n in range(5)), "half"]
    assert api.client.get(url, params={"cursor": "junk!"}).status_code == 422


def test_live_logs_go_on_where_they_broke_off(api: Served, done: str) -> None:
    api.ledger.set(done, run_id=None)
    folder = api.folder(done)
    folder.write_bytes("logs/shard-0000.log", b"one\ntwo\nthree\n")
    url = f"/api/v1/tasks/{done}/logs"
    events = _events(api.client.get(url, headers={"Accept": "text/event-stream"}).text)
    assert [kind for kind, _, _ in events] == ["log"] * 3 + ["end"]
    assert LogLine.model_validate_json(events[0][2]).text == "one"
    assert json.loads(events[-1][2]) == {"task_id": done, "status": "DONE"}

    broken = {"Last-Event-ID": events[1][1]}
    rest = _events(api.client.get(f"{url}?follow=true", headers=broken).text)
    assert [json.loads(data).get("text") for _, _, data in rest] == ["three", None]


def test_live_logs_wait_for_the_end(api: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    task = api.submit()
    folder = api.folder(task)
    looks = iter((b"one\n", b"one\ntwo\nth", b"one\ntwo\nthree\n"))
    original = api.ledger.task

    def look(task_id: str) -> object:
        content = next(looks, None)
        if content is not None:
            folder.write_bytes("logs/shard-0000.log", content)
        else:
            api.ledger.set(task, state=TaskState.DONE)
        return original(task_id)

    monkeypatch.setattr("mloc_dagster.api.logs._LOOK_EVERY_S", 0)
    monkeypatch.setattr(api.ledger, "task", look)
    events = _events(api.client.get(f"/api/v1/tasks/{task}/logs?follow=true").text)
    assert [json.loads(data).get("text") for _, _, data in events] == ["one", "two", "three", None]


def _events(text: str) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        found.append((fields["event"], fields["id"], fields["data"]))
    return found


def test_cleanup_says_first_and_removes_then(api: Served, done: str) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=40)
    api.ledger.set(done, ended_at=long_ago)
    recent = api.submit()
    api.folder(recent).write_bytes("task.json", b"{}")
    api.folder("lost").write_bytes("shards/0000/rows.jsonl", b"123")
    wanted = {"stale_workers": False, "results_older_than_days": 30}
    secrets = api.folder(done).store.folder(".secrets")
    for each in (done, recent, api.ledger.contents[done]):
        secrets.write_bytes(f"{each}.json", b"{}")

    planned = api.client.post("/admin/cleanup", json=wanted).json()
    assert [(each["kind"], each["name"]) for each in planned["items"]] == [
        ("shards", "lost"),
        ("result", done),
    ]
    assert planned["dry_run"]
    assert api.folder(done).exists("task.json")

    removed = api.client.post("/admin/cleanup", json={**wanted, "dry_run": False}).json()
    assert removed["items"] == planned["items"]
    assert not api.folder(done).exists("task.json")
    assert not api.folder("lost").exists("shards")
    assert api.folder(recent).exists("task.json")
    # Both tasks are of one template, which the younger may still need.
    assert secrets.list() == sorted([f"{api.ledger.contents[done]}.json", f"{recent}.json"])
    again = api.client.post("/admin/cleanup", json={**wanted, "dry_run": False}).json()
    assert again["count"] == 0


def test_cleanup_keeps_what_another_stage_may_still_read(api: Served) -> None:
    first = api.submit(STAGES)
    second = first.replace("-first", "-second")
    long_ago = datetime.now(UTC) - timedelta(days=40)
    api.ledger.set(first, state=TaskState.DONE, submitted_at=long_ago, ended_at=long_ago)
    wanted = {"stale_workers": False, "results_older_than_days": 30}
    assert api.client.post("/admin/cleanup", json=wanted).json()["count"] == 0
    api.ledger.set(second, state=TaskState.DONE, submitted_at=long_ago, ended_at=long_ago)
    found = api.client.post("/admin/cleanup", json=wanted).json()["items"]
    assert {each["name"] for each in found} == {first, second}


def test_cleanup_keeps_to_a_size(api: Served) -> None:
    for age in (3, 2, 1):
        task = api.submit()
        api.folder(task).write_bytes("task.json", bytes(1_000))
        ended = datetime.now(UTC) - timedelta(days=age)
        api.ledger.set(task, state=TaskState.DONE, ended_at=ended)
    wanted = {"stale_workers": False, "orphaned_shards": False, "results_max_bytes": 1_500}
    found = api.client.post("/admin/cleanup", json=wanted).json()
    assert (found["count"], found["bytes"]) == (2, 2_000)


def test_what_is_left_of_a_batch_goes_once_it_was_handed_out(api: Served) -> None:
    batches = open_store().folder(".batches")
    batches.write_bytes("done/batch.json", b"{}")
    batches.write_bytes("done/outcome.json", b"{}")
    batches.write_bytes("at-work/batch.json", b"{}")
    found = api.client.post("/admin/cleanup", json={"stale_workers": False}).json()
    assert [each["name"] for each in found["items"]] == [".batches/done"]
    api.client.post("/admin/cleanup", json={"stale_workers": False, "dry_run": False})
    assert batches.list() == ["at-work"]


def test_dead_letters(api: Served) -> None:
    task = api.submit()
    api.submit()
    api.ledger.set(task, state=TaskState.DEAD, error="no", rows_finished=1, batch_key="b")
    (letter,) = api.client.get("/api/v1/dead_letters").json()["dead_letters"]
    assert (letter["task_id"], letter["reason"], letter["rows_missing"]) == (task, "no", 1)


def test_workers_without_a_fleet_are_503(api: Served) -> None:
    answer = api.client.get("/workers")
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:mloc:unavailable")


@pytest.mark.parametrize("wanted", ["parquet", "jsonl", "csv", "json"])
def test_a_result_that_was_cut_off_is_not_served(api: Served, done: str, wanted: str) -> None:
    folder = api.folder(done)
    for name in ("responses.parquet", "responses.json"):
        Path(folder.url, name).write_bytes(folder.read_bytes(name)[:-100])
    answer = api.client.get(f"/api/v1/results/{done}", params={"format": wanted})
    assert (answer.status_code, answer.json()["type"]) == (409, "urn:mloc:damaged-file")
    name = "responses.json" if wanted == "json" else "responses.parquet"
    assert name in answer.json()["detail"]
    assert "by the manifest" in answer.json()["detail"]
    again = api.client.get(f"/api/v1/results/{done}/files/{name}")
    assert again.status_code == 409


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_store_that_takes_nothing_is_503_and_says_why(
    api: Served, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("mloc_dagster.results.files._open_new", refuse)
        answer = api.client.post("/api/v1/results", json=RESULT)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:mloc:storage-unavailable")
        assert os.strerror(number) in answer.json()["detail"]
        assert answer.headers["retry-after"]
        ready = api.client.get("/healthz/ready")
        assert ready.status_code == 503
        assert os.strerror(number) in ready.json()["checks"]["results"]["detail"]
    assert api.client.post("/api/v1/results", json=RESULT).status_code == 201
    assert api.client.get("/healthz/ready").status_code == 200
