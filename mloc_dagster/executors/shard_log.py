"""The log file of one shard, which survives its failures and gathers its attempts."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.store import Folder

MAX_LINES = 10_000  # of one attempt: a log that grows with the rows would be a second result


def shard_log_name(shard: Shard) -> str:
    """Returns where a shard's log lies below the task's folder."""
    return f"logs/shard-{shard.key}.log"


class ShardLog:
    """Timestamped lines of one attempt, written behind those of earlier attempts.

    Object stores cannot append, so lines are held back and the file is rewritten by `save`.

    Args:
        folder: The task's folder.
        shard: Whose log it is.
    """

    def __init__(self, folder: Folder, shard: Shard) -> None:
        self._folder = folder
        self._name = shard_log_name(shard)
        self._earlier = folder.read_bytes(self._name) if folder.exists(self._name) else b""
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Adds one line; line breaks inside become spaces."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._lock:
            if len(self._lines) < MAX_LINES:
                self._lines.append(f"{now} {' '.join(text.splitlines())}\n")

    def save(self) -> None:
        """Writes the file."""
        with self._lock:
            text = "".join(self._lines)
        self._folder.write_bytes(self._name, self._earlier + text.encode())
