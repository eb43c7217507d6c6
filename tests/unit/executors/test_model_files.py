"""What tells that a model's files have changed: every byte, read once while nothing changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_dagster.executors import model_source
from mloc_dagster.executors.model_source import content_digest, folder_revision


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every file that is read, with all of them settled and worth a note."""
    monkeypatch.setattr(model_source, "_SETTLED_NS", 0)
    monkeypatch.setattr(model_source, "SHARED_FROM_BYTES", 1)
    model_source._settled_digest.cache_clear()
    read, seen = model_source._read, []

    def noted(path: str) -> bytes:
        seen.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(model_source, "_read", noted)
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"weights")
    return tmp_path / "model"


def test_a_file_is_read_once_by_all_processes(folder: Path, reads: list[str]) -> None:
    first = content_digest(folder)
    model_source._settled_digest.cache_clear()  # as in another process
    assert content_digest(folder) == first
    assert reads == ["weights"]


def test_a_change_that_leaves_size_and_time_is_seen(folder: Path, reads: list[str]) -> None:
    before, about = folder_revision(str(folder)), (folder / "weights").stat()
    (folder / "weights").write_bytes(b"WEIGHTS")
    os.utime(folder / "weights", ns=(about.st_atime_ns, about.st_mtime_ns))
    assert folder_revision(str(folder)) != before
    assert reads == ["weights", "weights"]


def test_a_file_that_has_just_changed_is_read_again(folder: Path) -> None:
    before = content_digest(folder)
    with (folder / "weights").open("r+b") as file:
        file.write(b"W")
    assert content_digest(folder) != before


def test_a_home_that_cannot_be_written_costs_nothing_but_time(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    expected = content_digest(folder)
    monkeypatch.setattr(model_source, "_keep", refuse)
    (folder / "other").write_bytes(b"1")
    assert content_digest(folder) != expected
    assert reads == ["weights", "other"]
