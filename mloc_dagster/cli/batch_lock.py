"""One process of this machine at a time answers a batch."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mloc_dagster.errors import InputError
from mloc_dagster.settings import settings


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
            file.seek(0)
            where = f" in process {pid}" if (pid := file.read()) else ""
            raise InputError(
                f"task {task_id} is running{where}; wait for it, or stop it first"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
