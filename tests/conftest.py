"""Fixtures that the whole suite shares."""

from __future__ import annotations

import gc
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from mloc_dagster.schema import find_task_type
from mloc_dagster.settings import settings
from tests.redis_server import RedisServer, running_redis
from tests.s3_server import BUCKET, running_s3


def pytest_configure() -> None:
    """Prepares the process for every test.

    Templates that name no engine get the one that starts in seconds; vLLM's tests name theirs.
    torch's C++ part reads its log level when torch is imported, which some modules' collection does
    before an engine sets it, as a worker that loads its first model would.
    Models here are tiny, and pytest's processes share the cores: with a thread for each core they
    would wait for each other, three times as long as with one.
    Garbage is looked for as rarely as in a command: the objects of all these libraries are many.
    Ctrl-C is let through, which a shell that starts the tests in the background ignores for all.
    """
    gc.set_threshold(50_000)
    os.environ["MLOC_ENGINE"] = "transformers"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files first that take long, so that no process is left alone with one in the end.

    `--dist loadfile` hands files out in this order, with `--no-loadscope-reorder`: those with a
    `slow` test, then those with an `e2e` one, then all others.
    """
    marks: dict[Path, set[str]] = {}
    for item in items:
        marks.setdefault(item.path, set()).update(mark.name for mark in item.iter_markers())
    items.sort(key=lambda item: ("slow" not in marks[item.path], "e2e" not in marks[item.path]))


def pytest_collection_finish() -> None:
    """Leaves what the tests' modules are made of out of every later look for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unbuilt() -> Iterator[str]:
    """Returns a task type that nothing computes for the time of the test."""
    found = find_task_type("retrieve")
    executor = found.executor
    object.__setattr__(found, "executor", None)
    yield found.name
    object.__setattr__(found, "executor", executor)


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


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """One S3 API for the session."""
    with running_s3() as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty results store on the session's S3; its credentials are set."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def tiny_vision(pytestconfig: pytest.Config) -> Path:
    """The folder of a small LLaVA that names colours; trained once, then kept by pytest."""
    from tests.tiny_vision import build_tiny_vision

    return build_tiny_vision(pytestconfig.cache.mkdir("tiny-vision"))
