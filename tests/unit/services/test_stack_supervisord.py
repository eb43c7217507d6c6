"""The supervisor's logs on a full disk, as `/dev/full` is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from supervisor.loggers import LevelsByName, Logger

from mloc_dagster.services.stack.supervisord import LossyFileHandler


def logger(path: Path, max_bytes: int = 1_000) -> Logger:
    handler = LossyFileHandler(str(path), "ab", max_bytes, 2)
    handler.setFormat("%(message)s\n")
    handler.setLevel(LevelsByName.INFO)
    return Logger(LevelsByName.INFO, [handler])


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    log = logger(path)
    for number in range(3):
        log.info(f"lost {number}")
    assert capsys.readouterr() == ("", "")  # it would go to the same disk
    path.unlink()
    for number in range(3):
        log.info(f"kept {number}")
    log.close()
    assert path.read_text().endswith("kept 1\nkept 2\n")
    assert "lost" not in path.read_text()


def test_a_file_that_cannot_be_made_is_made_later(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path = folder / "log"
    log = logger(path, max_bytes=100)
    log.info("x" * 90)
    path.unlink()
    folder.rmdir()
    for _ in range(3):  # it is too long, and neither can it be moved away nor a new one be made
        log.info("x" * 90)
    folder.mkdir()
    log.info("first")
    log.info("second")
    log.close()
    assert path.read_text() == "first\nsecond\n"


def test_files_are_moved_away_when_they_are_long(tmp_path: Path) -> None:
    log = logger(tmp_path / "log", max_bytes=50)
    for number in range(6):
        log.info(f"{number}" * 30)
    log.close()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    assert "5" * 30 in (tmp_path / "log.1").read_text()
