"""Files between a local folder and the result store: hard links where they share a disk.

A link takes no time and no space, and both names then mean one file: whoever changes it under one
name changes it under the other. So only files that are never written again come through here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from pathlib import Path

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.results.files import BUFFER_BYTES, TEMPORARY_PREFIX
from mloc_dagster.results.store import Folder


def local_path(folder: Folder) -> Path | None:
    """Returns where a folder of the store is on this machine's disks; None if it is elsewhere."""
    return Path(folder.url) if folder.url.startswith("/") else None


def put_file(source: Path, target: Folder, name: str) -> None:
    """Puts a local file on the store; it appears there whole."""
    place = local_path(target)
    if place is not None and _link(source, place / name):
        sync(place.joinpath(name).parent)
        return
    with source.open("rb") as file, target.create(name) as copy:
        shutil.copyfileobj(file, copy, BUFFER_BYTES)


def take_file(source: Folder, name: str, target: Path, sha256: str | None) -> None:
    """Brings a file of the store to this machine.

    Args:
        source: A folder of the store.
        name: The file in it.
        target: The local file; its folder is made.
        sha256: What the content must hash to; None for anything.

    Raises:
        IncompleteResultsError: If it is not there, or its content is another.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    place = local_path(source)
    try:
        if place is None or not _link(place / name, target):
            with source.open(name) as file, target.open("wb") as copy:
                shutil.copyfileobj(file, copy, BUFFER_BYTES)
    except FileNotFoundError:
        raise IncompleteResultsError(f"{source.url}/{name} does not exist any longer") from None
    found = sha256_of(target)
    if sha256 is not None and found != sha256:
        target.unlink()
        raise IncompleteResultsError(
            f"{source.url}/{name} is damaged: its sha256 is {found}, expected {sha256}"
        )


def sha256_of(path: Path) -> str:
    """Returns the hash of a local file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Has a file's content, or a folder's list of names, outlive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Does what `sync` does for all that lies in a folder, and for the folder."""
    for path in sorted(folder.rglob("*")):
        sync(path)
    sync(folder)


def _link(source: Path, target: Path) -> bool:
    """Tries to give a file a second name, in place of what has it; says whether that worked."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
    try:
        os.link(source, temporary)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links: copying always works
        return False
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # replacing one name of a file by another of it does nothing
    return True
