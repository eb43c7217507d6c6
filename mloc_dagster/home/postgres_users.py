"""Who uses the embedded PostgreSQL: each process holds a lock, which the kernel drops at its end.

A list of pids in a file would outlive a process that is killed, and two threads could damage it.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


class PostgresUsers:
    """The processes that share the server of a data folder; files beside that folder.

    Args:
        data: The data folder.
    """

    def __init__(self, data: Path) -> None:
        self._folder = data.with_name(f"{data.name}.users")
        self._own: BinaryIO | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes from starting, joining, leaving and stopping the server.

        Raises:
            FileNotFoundError: If the home is gone.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with self._folder.with_suffix(".lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def join(self) -> None:
        """Makes this process a user until it leaves or ends; its forks count as well."""
        handle, _ = tempfile.mkstemp(prefix=f"{os.getpid()}.", dir=self._folder)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._own = os.fdopen(handle, "wb", buffering=0)
        self._own.write(str(os.getpid()).encode())

    def leave(self) -> None:
        """Makes this process a user no longer."""
        if self._own is not None:
            self._own.close()
            self._own = None

    def pids(self) -> list[int]:
        """Returns who uses the server; call it `alone`, for it forgets those that ended."""
        return [pid for each in self._folder.iterdir() if (pid := _user(each)) is not None]


def _user(path: Path) -> int | None:
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(file.read())
        path.unlink()
        return None
