from __future__ import annotations

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from mloc_dagster.errors import InputError, MissingExtraError
from mloc_dagster.results.store import open_store


def test_a_relative_place_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("some/results/")
    monkeypatch.chdir("/")
    store.task("t").write_bytes("a", b"x")

    assert store.url == str(tmp_path / "some/results")
    assert (tmp_path / "some/results/t/a").read_bytes() == b"x"


@pytest.mark.parametrize("prefix", ["file://", "local://", ""])
def test_a_local_place_may_be_a_url(tmp_path: Path, prefix: str) -> None:
    store = open_store(f"{prefix}{tmp_path}/r")
    assert store.task("t").url == f"{tmp_path}/r/t"


def test_a_folder_url_joins_names_on_other_storage() -> None:
    assert open_store("memory://a/b/").folder("c/d").url == "memory://a/b/c/d"


@pytest.mark.parametrize("url", ["", " ", "a\0b"])
def test_no_place_at_all_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="no place for results"):
        open_store(url)


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(InputError, match="nosuch://bucket"):
        open_store("nosuch://bucket/prefix")


def test_s3_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(MissingExtraError, match=r"mloc-dagster\[s3\]"):
        open_store("s3://bucket/prefix")


def test_a_failed_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_store(str(tmp_path)).task("t")
    folder.write_bytes("a", b"before")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        folder.write_bytes("a", b"after")

    assert [path.name for path in (tmp_path / "t").iterdir()] == ["a"]
    assert folder.read_bytes("a") == b"before"


def test_what_a_killed_writer_left_is_not_listed(tmp_path: Path) -> None:
    folder = open_store(str(tmp_path)).task("t")
    folder.write_bytes("logs/a", b"x")
    (tmp_path / "t/logs/.tmp-1-abc").write_bytes(b"half")
    (tmp_path / "t/.tmp-2-abc").write_bytes(b"half")

    assert folder.list() == ["logs"]
    assert folder.list(recursive=True) == ["logs/a"]


def test_a_new_file_has_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    open_store(str(tmp_path)).folder("t").write_bytes("a", b"x")
    assert (tmp_path / "t/a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def _write_many(place: tuple[str, int]) -> None:
    url, writer = place
    folder = open_store(url).task("t")
    for turn in range(50):
        folder.write_bytes("same/file", str(writer).encode() * 10_000)
        folder.write_bytes(f"own/{writer}-{turn}", b"x")


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_write_many, [(str(tmp_path), 1), (str(tmp_path), 2)]))

    folder = open_store(str(tmp_path)).task("t")
    assert folder.read_bytes("same/file") in (b"1" * 10_000, b"2" * 10_000)
    assert len(folder.list("own")) == 100
