"""What a training keeps on the store while it runs: its checkpoints, its logs, its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from mloc_dagster.executors.training.checkpoints import (
    fetch_checkpoint,
    publish_checkpoint,
    published_checkpoints,
)
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.output import CHECKPOINTS_NAME


class Shelf:
    """The store's side of a training.

    Args:
        folder: The task's folder.
        scratch: Where the training works; local.
        keep: How many checkpoints stay; None for all.
        log: Takes a line for the task's log.
    """

    def __init__(
        self, folder: Folder, scratch: Path, *, keep: int | None, log: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._scratch = scratch
        self._keep = keep
        self._log = log

    def fetch_newest(self) -> Path | None:
        """Brings the newest checkpoint that is whole to the scratch folder; None without one."""
        return fetch_checkpoint(self._folder, self._scratch / CHECKPOINTS_NAME)

    def put(self, checkpoint: Path) -> None:
        """Publishes a checkpoint, takes it from the outbox, and lets go of the oldest ones."""
        publish_checkpoint(checkpoint, self._folder, f"{CHECKPOINTS_NAME}/{checkpoint.name}")
        shutil.rmtree(checkpoint)
        kept = published_checkpoints(self._folder)
        for name in kept[: -self._keep] if self._keep else []:
            self._folder.delete(f"{CHECKPOINTS_NAME}/{name}")

    def keep_file(self, path: Path, name: str) -> None:
        """Puts a file on the store; one that is not there is none to keep."""
        if path.is_file():
            with path.open("rb") as source, self._folder.create(name) as copy:
                shutil.copyfileobj(source, copy)

    def keep_folder(self, path: Path, name: str) -> None:
        """Puts all files of a folder on the store."""
        for file in sorted(path.rglob("*")):
            self.keep_file(file, f"{name}/{file.relative_to(path).as_posix()}")
