from __future__ import annotations

import hashlib
import json
import uuid

import pytest

from mloc_dagster.errors import IncompleteResultsError, InputError
from mloc_dagster.results.manifest import read_manifest, verify_manifest, write_manifest
from mloc_dagster.results.store import Folder, open_store


@pytest.fixture
def folder() -> Folder:
    folder = open_store(f"memory://{uuid.uuid4().hex}").task("t")
    for name in ("responses.json", "logs/0000.txt", "shards/0/a", "shards/0/b", "input/0"):
        folder.write_bytes(name, name.encode())
    return folder


def test_the_manifest_lists_files_and_sums_folders_up(folder: Folder) -> None:
    manifest = write_manifest(folder, ["responses.json", "logs/", "archives/model.tar"])

    assert [(e.path, e.type, e.required, e.status, e.size) for e in manifest.entries] == [
        ("archives/model.tar", "file", True, "missing", 0),
        ("input", "directory", False, "present", 7),
        ("logs", "directory", True, "present", 13),
        ("logs/0000.txt", "file", False, "present", 13),
        ("responses.json", "file", True, "present", 14),
        ("shards", "directory", False, "present", 20),
    ]
    by_path = {entry.path: entry for entry in manifest.entries}
    assert by_path["responses.json"].sha256 == hashlib.sha256(b"responses.json").hexdigest()
    assert by_path["shards"].sha256 is None
    assert by_path["logs/0000.txt"].name == "0000.txt"
    assert read_manifest(folder) == manifest
    document = json.loads(folder.read_bytes("manifest.json"))
    assert list(document) == ["task_id", "generated_at", "entries"]


def test_what_stays_keeps_its_date(folder: Folder) -> None:
    before = {e.path: e.updated_at for e in write_manifest(folder, []).entries}
    folder.write_bytes("responses.json", b"other")
    folder.write_bytes("logs/0000.txt", b"logs/0000.txt")
    after = {e.path: e.updated_at for e in write_manifest(folder, []).entries}

    assert {path for path in before if before[path] != after[path]} == {"responses.json"}


def test_verifying_finds_every_difference(folder: Folder) -> None:
    folder.write_bytes("same", b"same")
    write_manifest(folder, ["later.txt"])
    folder.write_bytes("responses.json", b"RESPONSES.JSON")  # as long as before
    folder.delete("logs/0000.txt")
    folder.delete("shards/0/b")
    folder.write_bytes("later.txt", b"x")

    assert [(d.path, d.problem) for d in verify_manifest(folder)] == [
        ("later.txt", "unlisted"),
        ("logs/0000.txt", "missing"),
        ("responses.json", "changed"),
        ("shards", "changed"),
    ]


def test_a_task_without_a_manifest_is_not_done(folder: Folder) -> None:
    with pytest.raises(IncompleteResultsError, match="not done"):
        verify_manifest(folder)


def test_a_required_name_may_not_leave_the_folder(folder: Folder) -> None:
    with pytest.raises(InputError):
        write_manifest(folder, ["../other/task.json"])
