"""Checkpoints: folders `checkpoint-<step>` that count once all of them is written.

The last file written is `mloc_checkpoint.json`, which lists all the others with size and sha256.
Without it, or with a file missing or shorter, a checkpoint is a leftover that is never resumed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.executors.training.weight_files import (
    put_file,
    sha256_of,
    sync,
    sync_tree,
    take_file,
)
from mloc_dagster.results import TEMPORARY_PREFIX, Folder
from mloc_dagster.schema import CHECKPOINTS_NAME

MANIFEST_NAME = "mloc_checkpoint.json"
_NAME = re.compile(r"checkpoint-(\d+)")


class CheckpointFile(BaseModel):
    """A file of a checkpoint.

    Attributes:
        name: Its path below the checkpoint's folder.
        size: Bytes.
        sha256: Of its content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    sha256: str


class CheckpointManifest(BaseModel):
    """What a complete checkpoint consists of.

    Attributes:
        step: Optimiser steps done.
        created_at: When it was complete.
        facts: What else the writer noted, such as the task.
        files: All files but the manifest, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    created_at: AwareDatetime
    facts: dict[str, JsonValue]
    files: tuple[CheckpointFile, ...]

    def fits(self, sizes: Mapping[str, int]) -> bool:
        """Tells whether all files are there with their size."""
        return all(sizes.get(file.name) == file.size for file in self.files)


def seal(folder: Path, step: int, facts: Mapping[str, JsonValue]) -> CheckpointManifest:
    """Makes a checkpoint complete, once all its files are written.

    Args:
        folder: The checkpoint's folder.
        step: Optimiser steps done.
        facts: Anything to note along with it.
    """
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    manifest = CheckpointManifest(
        step=step,
        created_at=datetime.now(UTC),
        facts=dict(facts),
        files=tuple(
            CheckpointFile(name=name, size=size, sha256=sha256_of(folder / name))
            for name, size in sorted(_sizes(folder).items())
        ),
    )
    sync_tree(folder)
    temporary = folder / f"{TEMPORARY_PREFIX}{MANIFEST_NAME}"
    temporary.write_text(manifest.model_dump_json(indent=2) + "\n")
    sync(temporary)
    temporary.rename(folder / MANIFEST_NAME)
    sync(folder)
    sync(folder.parent)
    return manifest


def is_complete(folder: Path, *, verify: bool = False) -> bool:
    """Tells whether a checkpoint may be resumed.

    Args:
        folder: The checkpoint's folder, which may be missing.
        verify: Hash all files as well, instead of looking at their sizes only.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.fits(_sizes(folder)):
        return False
    return not verify or all(sha256_of(folder / f.name) == f.sha256 for f in manifest.files)


def read_manifest(folder: Path) -> CheckpointManifest | None:
    """Returns what a checkpoint consists of; None if it was not finished."""
    try:
        return CheckpointManifest.model_validate_json((folder / MANIFEST_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None


def latest(output_dir: Path) -> Path | None:
    """Returns the newest complete checkpoint of a training; None without one."""
    return next((each for each in reversed(_found(output_dir)) if is_complete(each)), None)


def prune(output_dir: Path, keep: int | None) -> tuple[Path, ...]:
    """Deletes complete checkpoints beyond the newest ones, and leftovers older than the newest.

    Leftovers newer than all complete ones stay: they may be in the making.

    Args:
        output_dir: Where the checkpoints are.
        keep: How many complete ones stay; None for all.

    Returns:
        What was deleted, oldest first.
    """
    found = _found(output_dir)
    complete = [each for each in found if is_complete(each)]
    if not complete:
        return ()
    kept = complete if keep is None else complete[-max(keep, 1) :]
    older = found[: found.index(complete[-1])]
    gone = tuple(each for each in older if each not in kept)
    for each in gone:
        (each / MANIFEST_NAME).unlink(missing_ok=True)  # what is half deleted counts no longer
        shutil.rmtree(each)
    return gone


def publish_checkpoint(folder: Path, target: Folder, name: str) -> None:
    """Puts a complete checkpoint on the store, its manifest last; an equal one stays as it is.

    Args:
        folder: The checkpoint's folder.
        target: The task's folder.
        name: The checkpoint's name there, such as `checkpoints/checkpoint-100`.

    Raises:
        IncompleteResultsError: If the checkpoint is not complete.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest.fits(_sizes(folder)):
        raise IncompleteResultsError(f"the checkpoint {folder.name} is not complete: not published")
    place = f"{name}/{MANIFEST_NAME}"
    if _read_published(target, name) == manifest:
        return
    target.delete(place)
    for file in manifest.files:
        put_file(folder / file.name, target, f"{name}/{file.name}")
    target.write_bytes(place, (folder / MANIFEST_NAME).read_bytes())


def published_checkpoints(target: Folder) -> list[str]:
    """Returns the names of the complete checkpoints in a task's folder, oldest first."""
    sizes = target.sizes(CHECKPOINTS_NAME)
    return [
        name
        for name in _in_order(each.split("/")[1] for each in sizes)
        if (manifest := _read_published(target, f"{CHECKPOINTS_NAME}/{name}"))
        and manifest.fits(_below(sizes, f"{CHECKPOINTS_NAME}/{name}/"))
    ]


def fetch_checkpoint(
    target: Folder, scratch: Path, log: Callable[[str], None] | None = None
) -> Path | None:
    """Brings the newest checkpoint of a task that is whole to this machine.

    Args:
        target: The task's folder.
        scratch: Where it goes, as `checkpoint-<step>`; one that is whole there is taken as it is.
        log: Hears of checkpoints that are damaged, and for which an older one is taken.

    Returns:
        Its folder; None if the task has no sound one.
    """
    for name in reversed(published_checkpoints(target)):
        try:
            return _fetch(target, f"{CHECKPOINTS_NAME}/{name}", scratch / name)
        except IncompleteResultsError as error:
            if log is not None:
                log(f"{name} is left out: {error}")
    return None


def _fetch(target: Folder, place: str, folder: Path) -> Path:
    manifest = _read_published(target, place)
    if manifest is None:
        raise IncompleteResultsError(f"{target.url}/{place} does not exist any longer")
    if read_manifest(folder) == manifest and is_complete(folder, verify=True):
        return folder
    coming = folder.parent / f"{TEMPORARY_PREFIX}{folder.name}"
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir(parents=True)
    try:
        for file in manifest.files:
            take_file(target, f"{place}/{file.name}", coming / file.name, file.sha256)
        (coming / MANIFEST_NAME).write_bytes(target.read_bytes(f"{place}/{MANIFEST_NAME}"))
        shutil.rmtree(folder, ignore_errors=True)
        return coming.rename(folder)
    finally:
        shutil.rmtree(coming, ignore_errors=True)


def _read_published(target: Folder, place: str) -> CheckpointManifest | None:
    try:
        content = target.read_bytes(f"{place}/{MANIFEST_NAME}")
        return CheckpointManifest.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return None


def _found(output_dir: Path) -> list[Path]:
    return [output_dir / name for name in _in_order(each.name for each in output_dir.glob("*/"))]


def _in_order(names: Iterable[str]) -> list[str]:
    steps = {name: int(match[1]) for name in names if (match := _NAME.fullmatch(name))}
    return sorted(steps, key=lambda name: steps[name])


def _below(sizes: Mapping[str, int], prefix: str) -> dict[str, int]:
    return {n.removeprefix(prefix): size for n, size in sizes.items() if n.startswith(prefix)}


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_NAME)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


class TrainingFolder:
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
