"""A wrong password is one sentence: of `mloc worker`, and of what waits for its databases."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import redis

from mloc_dagster.cli import entry
from mloc_dagster.settings import settings
from tests.fleet_threads import until

PASSWORD = "not-the-one"


@pytest.fixture
def refused_url(redis_url: str) -> str:
    """The session's Redis as a user that exists, with another password."""
    with redis.Redis.from_url(redis_url) as client:
        client.acl_setuser("worker", enabled=True, passwords=["+right"], categories=["+@all"])
    return redis_url.replace("redis://", f"redis://worker:{PASSWORD}@")


def test_a_worker_that_redis_refuses_ends_with_one_sentence(
    refused_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOC_REDIS_URL", refused_url)
    settings.cache_clear()
    assert entry.run(["worker"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "refuses the user 'worker'" in said
    assert PASSWORD not in said


def test_what_waits_for_redis_says_that_it_is_refused(
    refused_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_REDIS_URL", refused_url)
    log = tmp_path / "waits.log"
    command = [sys.executable, "-m", "mloc_dagster.services.stack.wait_for", "redis", "--", "true"]
    with log.open("wb") as file, subprocess.Popen(command, stderr=file) as process:
        try:
            until(lambda: "refuses the user 'worker'" in log.read_text(), "it says so")
            assert log.read_text().startswith("waiting for redis: ")
            assert PASSWORD not in log.read_text()
        finally:
            process.kill()
