"""Fixtures that the whole suite shares."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mloc_dagster.settings import settings
from tests.redis_server import RedisServer, running_redis


def pytest_configure() -> None:
    """Lets Ctrl-C through: a shell that starts the tests in the background ignores it for all."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives each test a store and a home of its own, and settings read anew."""
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One real Redis for the session."""
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of the session's Redis, emptied; `MLOC_REDIS_URL` stays as it was."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url
