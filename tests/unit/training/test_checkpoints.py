"""Checkpoints: complete or nothing, on this machine and on the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.executors.training.checkpoints import (
    MANIFEST_NAME,
    fetch_checkpoint,
    is_complete,
    latest,
    prune,
    publish_checkpoint,
    published_checkpoints,
    seal,
)
from mloc_dagster.results import Folder, open_store


def write_files(folder: Path) -> Path:
    (folder / "global").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(folder.name.encode() * 100)
    (folder / "global" / "optimizer.pt").write_bytes(b"state")
    return folder


def checkpoint(parent: Path, step: int) -> Path:
    folder = write_files(parent / f"checkpoint-{step}")
    seal(folder, step, {"task_id": "t1"})
    return folder


@pytest.fixture(params=["local", "memory"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    url = str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}"
    return open_store(url).task("t1")


def publish(task: Folder, folder: Path) -> None:
    publish_checkpoint(folder, task, f"checkpoints/{folder.name}")


def test_a_sealed_checkpoint_lists_every_file(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "checkpoint-7")
    assert not is_complete(folder)
    manifest = seal(folder, 7, {"task_id": "t1"})
    assert is_complete(folder, verify=True)
    assert [file.name for file in manifest.files] == ["global/optimizer.pt", "model.safetensors"]
    written = json.loads((folder / MANIFEST_NAME).read_text())
    assert (written["step"], written["facts"]) == (7, {"task_id": "t1"})


@pytest.mark.parametrize("damage", ["truncated", "missing file", "no manifest", "half a manifest"])
def test_a_half_written_checkpoint_is_never_the_latest(tmp_path: Path, damage: str) -> None:
    sound, broken = checkpoint(tmp_path, 9), checkpoint(tmp_path, 10)
    assert latest(tmp_path) == broken
    if damage == "truncated":
        (broken / "model.safetensors").write_bytes(b"check")
    elif damage == "missing file":
        (broken / "global" / "optimizer.pt").unlink()
    elif damage == "no manifest":
        (broken / MANIFEST_NAME).unlink()
    else:
        (broken / MANIFEST_NAME).write_text('{"step": 10, "fil')
    assert latest(tmp_path) == sound


def test_bytes_that_changed_are_found_when_hashes_are_asked_for(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / "global" / "optimizer.pt").write_bytes(b"stale")
    assert is_complete(folder)
    assert not is_complete(folder, verify=True)


def test_there_is_no_latest_without_any(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    (tmp_path / "runs").mkdir()
    assert latest(tmp_path) is None


def test_pruning_keeps_the_newest_and_what_may_be_in_the_making(tmp_path: Path) -> None:
    for step in (1, 20, 100, 300):
        checkpoint(tmp_path, step)
    write_files(tmp_path / "checkpoint-3")
    write_files(tmp_path / "checkpoint-400")
    gone = prune(tmp_path, keep=2)
    assert [each.name for each in gone] == ["checkpoint-1", "checkpoint-3", "checkpoint-20"]
    left = sorted(each.name for each in tmp_path.iterdir())
    assert left == ["checkpoint-100", "checkpoint-300", "checkpoint-400"]


def test_pruning_without_a_limit_takes_leftovers_only(tmp_path: Path) -> None:
    write_files(tmp_path / "checkpoint-1")
    assert prune(tmp_path, keep=1) == ()  # nothing newer is complete
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 3)
    assert [each.name for each in prune(tmp_path, keep=None)] == ["checkpoint-1"]


def test_the_newest_complete_checkpoint_comes_back_from_the_store(
    task: Folder, tmp_path: Path
) -> None:
    for step in (9, 10):
        publish(task, checkpoint(tmp_path / "here", step))
    assert published_checkpoints(task) == ["checkpoint-9", "checkpoint-10"]
    there = fetch_checkpoint(task, tmp_path / "elsewhere")
    assert there == tmp_path / "elsewhere" / "checkpoint-10"
    assert is_complete(there, verify=True)
    assert fetch_checkpoint(task, tmp_path / "elsewhere") == there
    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["checkpoint-10"]


def test_a_checkpoint_that_was_only_partly_uploaded_does_not_count(
    task: Folder, tmp_path: Path
) -> None:
    publish(task, checkpoint(tmp_path / "here", 9))
    publish(task, checkpoint(tmp_path / "here", 10))
    task.delete("checkpoints/checkpoint-10/model.safetensors")
    task.write_bytes("checkpoints/checkpoint-11/model.safetensors", b"no manifest yet")
    assert published_checkpoints(task) == ["checkpoint-9"]
    found = fetch_checkpoint(task, tmp_path / "elsewhere")
    assert found is not None
    assert found.name == "checkpoint-9"


def test_a_damaged_checkpoint_on_the_store_gives_way_to_an_older_one(
    task: Folder, tmp_path: Path
) -> None:
    for step in (9, 10):
        publish(task, checkpoint(tmp_path / "here", step))
    task.write_bytes("checkpoints/checkpoint-10/global/optimizer.pt", b"stale")
    lines: list[str] = []
    found = fetch_checkpoint(task, tmp_path / "elsewhere", lines.append)
    assert found is not None
    assert found.name == "checkpoint-9"
    assert "checkpoint-10 is left out" in lines[0]
    assert "expected" in lines[0]


def test_an_unfinished_checkpoint_is_not_published(task: Folder, tmp_path: Path) -> None:
    with pytest.raises(IncompleteResultsError, match="checkpoint-5 is not complete"):
        publish(task, write_files(tmp_path / "checkpoint-5"))
    assert fetch_checkpoint(task, tmp_path / "elsewhere") is None


def test_on_one_disk_files_are_linked_and_outlive_their_first_name(tmp_path: Path) -> None:
    task = open_store(str(tmp_path / "store")).task("t1")
    folder = checkpoint(tmp_path / "here", 10)
    publish(task, folder)
    publish(task, folder)  # again, by a retry
    kept = tmp_path / "store/t1/checkpoints/checkpoint-10"
    weights = kept / "model.safetensors"
    assert weights.stat().st_ino == (folder / "model.safetensors").stat().st_ino
    shutil.rmtree(folder)
    assert is_complete(kept, verify=True)


def test_a_checkpoint_of_the_same_name_takes_the_former_ones_place(
    task: Folder, tmp_path: Path
) -> None:
    publish(task, checkpoint(tmp_path / "first", 10))
    second = write_files(tmp_path / "second" / "checkpoint-10")
    (second / "model.safetensors").write_bytes(b"other weights")
    seal(second, 10, {})
    publish(task, second)
    found = fetch_checkpoint(task, tmp_path / "elsewhere")
    assert found is not None
    assert (found / "model.safetensors").read_bytes() == b"other weights"
