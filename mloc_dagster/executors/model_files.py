"""Files that a model is loaded from: what tells that one has changed, and what is in them.

A digest is over every byte, and is kept under all that the file system changes with a file: its
place, inode, size, and both of its times. A file of 16 MB or more is read once for all processes
of this home.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.schema.canonical import digest_of
from mloc_dagster.settings import settings

SHARED_FROM_BYTES = 16 << 20
"""Files of this size are worth a note for other processes: reading one takes some 10 ms."""

_BLOCK_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000
"""A file that was changed more lately could change again within the same tick of its clock."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as the file system describes it; any change of it changes the stamp."""

    path: str
    name: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int


def stamps_of(root: Path) -> tuple[FileStamp, ...]:
    """Returns the stamp of a file, or of all that an engine may read below a folder."""
    return tuple(_stamp(path, root) for path in ([root] if root.is_file() else _files_below(root)))


def content_digest(root: Path) -> bytes:
    """Returns the digest of a file, or of all names and bytes that an engine may read below."""
    return digest_of(*((stamp.name, _file_digest(stamp)) for stamp in stamps_of(root)))


def folder_revision(place: str) -> str:
    """Returns `sha256:…` over all of a model's files; empty where there is no folder."""
    folder = Path(place)
    return f"sha256:{content_digest(folder).hex()}" if folder.is_dir() else ""


def paths_in(value: JsonValue | Mapping[str, JsonValue]) -> Iterator[Path]:
    """Yields the files and folders of this machine that a value names, wherever in it."""
    if isinstance(value, str):
        path = Path(value).expanduser()
        if len(value) < os.pathconf("/", "PC_PATH_MAX") and "\0" not in value and path.exists():
            yield path
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from paths_in(value[name])
    elif isinstance(value, list):
        for each in value:
            yield from paths_in(each)


def _stamp(path: Path, root: Path) -> FileStamp:
    about = path.stat()
    return FileStamp(
        path=str(path),
        name="" if path == root else path.relative_to(root).as_posix(),
        size=about.st_size,
        modified_ns=about.st_mtime_ns,
        changed_ns=about.st_ctime_ns,
        inode=about.st_ino,
    )


def _files_below(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        # Checkpoints of a training lie below the model that came of it; no engine reads them.
        folders[:] = [
            name for name in folders if not name.startswith((".", "checkpoint-", "__pycache__"))
        ]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _file_digest(stamp: FileStamp) -> bytes:
    if time.time_ns() - stamp.changed_ns < _SETTLED_NS:
        return _read(stamp.path)
    return _settled_digest(stamp)


@lru_cache(maxsize=4096)
def _settled_digest(stamp: FileStamp) -> bytes:
    if stamp.size < SHARED_FROM_BYTES:
        return _read(stamp.path)
    note = settings().home / "file-digests" / digest_of(*map(str, astuple(stamp))).hex()
    with suppress(OSError, ValueError):  # without the note the file is read
        return bytes.fromhex(note.read_text().strip())
    digest = _read(stamp.path)
    if _stamp(Path(stamp.path), Path(stamp.path)).changed_ns == stamp.changed_ns:
        with suppress(OSError):  # a home that cannot be written costs time, and no answer
            _keep(note, digest)
    return digest


def _keep(note: Path, digest: bytes) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_name(f".{note.name}.{secrets.token_hex(4)}")
    draft.write_text(digest.hex())
    draft.replace(note)


def _read(path: str) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()
