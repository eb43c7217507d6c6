"""`mloc batch` overwrites nothing by mistake, and says so before it computes anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mloc_dagster.cli.app import app
from mloc_dagster.cli.batch_files import check_files, replacing
from mloc_dagster.errors import InputError

BATCH = b"a batch\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_bytes(BATCH)
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("output", "errors", "said"),
    [
        ("in.jsonl", None, "-o in.jsonl is the batch itself"),
        ("folder/../in.jsonl", None, "is the batch itself"),
        ("link.jsonl", None, "-o link.jsonl is the batch itself"),
        ("out.jsonl", "in.jsonl", "--errors in.jsonl is the batch itself"),
        ("out.jsonl", "out.jsonl", "is the same file as -o out.jsonl"),
        ("out.jsonl", "./folder/../out.jsonl", "is the same file as -o out.jsonl"),
        ("nodir/out.jsonl", None, "-o nodir/out.jsonl: the folder nodir does not exist"),
        ("out.jsonl", "nodir/x", "--errors nodir/x: the folder nodir does not exist"),
        ("folder", None, "-o folder is a folder"),
        ("out.jsonl", "folder", "--errors folder is a folder"),
        ("/dev/stdout", None, "-o /dev/stdout is no regular file"),
        ("/dev/null", None, "-o /dev/null is no regular file"),
        ("pipe", None, "-o pipe is no regular file"),
        ("out.jsonl", "/dev/stderr", "--errors /dev/stderr is no regular file"),
    ],
)
def test_a_file_that_cannot_take_the_answers(output: str, errors: str | None, said: str) -> None:
    command = ["batch", "in.jsonl", "-m", "tiny-chat", "-o", output]
    done = CliRunner().invoke(app, [*command, *(["--errors", errors] if errors else [])])
    assert isinstance(done.exception, InputError), "which exits with 2"
    assert said in str(done.exception)
    assert Path("in.jsonl").read_bytes() == BATCH
    assert Path("link.jsonl").is_symlink()
    assert Path("/dev/null").is_char_device()


def test_the_errors_file_that_nobody_named_may_be_the_batch() -> None:
    Path("in.jsonl").rename("out.errors.jsonl")
    with pytest.raises(InputError, match=r"--errors out\.errors\.jsonl is the batch itself"):
        check_files("out.errors.jsonl", Path("out.jsonl"), Path("out.errors.jsonl"))


def test_a_stream_is_refused_though_it_leads_to_a_file(folder: Path) -> None:
    with (folder / "redirected").open("wb") as file:
        link = folder / "stream"
        link.symlink_to(f"/proc/self/fd/{file.fileno()}")
        with pytest.raises(InputError, match="is no regular file"):
            check_files(None, link, folder / "errors")


def test_files_that_are_there_may_be_replaced_and_a_link_stays_one(folder: Path) -> None:
    (folder / "old.jsonl").write_text("old")
    (folder / "out.jsonl").symlink_to("old.jsonl")
    check_files("in.jsonl", Path("out.jsonl"), Path("errors.jsonl"))
    with replacing(Path("out.jsonl")) as file:
        file.write(b"new")
    assert (folder / "out.jsonl").is_symlink()
    assert (folder / "old.jsonl").read_bytes() == b"new"
    check_files("s3://bucket/out.jsonl", Path("out.jsonl"), Path("errors.jsonl"))
