"""One process of this machine at a time answers a batch."""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings

_FLOCK = "hhqqi"
"""`struct flock` on 64-bit Linux: type, whence, start, length, process."""


@contextmanager
def answering_alone(task_id: str) -> Iterator[None]:
    """Keeps two commands from answering the same batch, from their first second on.

    Dagster knows who is at work once a run has started, which is too late for a command that was
    given twice at once.

    Args:
        task_id: The batch's task.

    Raises:
        InputError: If another process is at it; says which.
    """
    folder = settings().home / "batches"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{task_id}.lock").open("a+", encoding="utf-8") as file:
        try:
            # Ends with this process, also by `kill -9`: engines that it left behind inherit none.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            where = f" in process {pid}" if (pid := _holder(file.fileno())) else ""
            raise InputError(
                f"task {task_id} is running{where}; wait for it, or stop it first"
            ) from None
        yield


def _holder(descriptor: int) -> int:
    """Returns the process that holds the lock; 0 if it was let go of meanwhile.

    The kernel knows from the first moment on; what a process wrote into the file would not be there
    yet when two commands start at once.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else pid
