"""The files of a result store: the protocol, files on a local disk, files staged in memory."""

from __future__ import annotations

import ctypes
import io
import os
import secrets
import shutil
import time
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Protocol

TEMPORARY_PREFIX = ".tmp-"
BUFFER_BYTES = 1 << 20


class Files(Protocol):
    """Files on one kind of storage. Writes are atomic: readers see the old or the new, whole."""

    def exists(self, key: str) -> bool:
        """Tells whether a file or a folder of that name exists."""
        ...

    def size(self, key: str) -> int:
        """Returns a file's bytes; raises `FileNotFoundError`."""
        ...

    def times(self, keys: Sequence[str]) -> dict[str, float]:
        """Returns when files were written, in seconds since 1970; missing ones are left out."""
        ...

    def read(self, key: str) -> bytes:
        """Returns a file's content; raises `FileNotFoundError`."""
        ...

    def write(self, key: str, data: bytes) -> None:
        """Writes a whole file."""
        ...

    def open(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file for buffered reading; raises `FileNotFoundError`."""
        ...

    def create(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Streams a file that appears when the block ends, and not at all when it raises."""
        ...

    def list(self, key: str) -> Iterable[str]:
        """Returns a folder's own files and folders, in any order; none without such a folder."""
        ...

    def sizes(self, key: str) -> dict[str, int]:
        """Returns the bytes of every file below a folder, by name relative to it."""
        ...

    def delete(self, key: str) -> None:
        """Removes a file, or a folder with all below it; a missing one is no error."""
        ...


def visible(names: Iterable[str]) -> list[str]:
    """Returns the names that are no temporary file and in no temporary folder."""
    inside = f"/{TEMPORARY_PREFIX}"
    return [n for n in names if not n.startswith(TEMPORARY_PREFIX) and inside not in n]


class StagedFiles:
    """Keeps what is written until `flush`; readers of these files see it, others do not.

    Implements `Files`. Deleting takes from what lies below at once.

    Args:
        below: Where files go, and are read that are not kept here.
    """

    def __init__(self, below: Files) -> None:
        self._below = below
        self._kept: dict[str, tuple[bytes, float]] = {}

    def flush(self, but: Collection[str] = ()) -> None:
        """Writes what is kept to where it belongs, in the order in which it was written here.

        Args:
            but: Keys that stay here for now.
        """
        for key in [each for each in self._kept if each not in but]:
            self._below.write(key, self._kept[key][0])
            del self._kept[key]

    def exists(self, key: str) -> bool:
        """Tells whether a file or a folder of that name exists."""
        return key in self._kept or bool(self._names(key)) or self._below.exists(key)

    def size(self, key: str) -> int:
        """Returns a file's bytes."""
        kept = self._kept.get(key)
        return self._below.size(key) if kept is None else len(kept[0])

    def times(self, keys: Sequence[str]) -> dict[str, float]:
        """Returns when files were written, in seconds since 1970."""
        kept = {key: self._kept[key][1] for key in keys if key in self._kept}
        return {**self._below.times([key for key in keys if key not in kept]), **kept}

    def read(self, key: str) -> bytes:
        """Returns a file's content."""
        kept = self._kept.get(key)
        return self._below.read(key) if kept is None else kept[0]

    def write(self, key: str, data: bytes) -> None:
        """Writes a whole file."""
        self._kept.pop(key, None)
        self._kept[key] = (bytes(data), time.time())

    def open(self, key: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file for reading."""
        kept = self._kept.get(key)
        return self._below.open(key) if kept is None else nullcontext(io.BytesIO(kept[0]))

    @contextmanager
    def create(self, key: str) -> Generator[IO[bytes]]:
        """Streams a file that appears when the block ends, and not at all when it raises."""
        buffer = io.BytesIO()
        yield buffer
        self.write(key, buffer.getvalue())

    def list(self, key: str) -> Iterable[str]:
        """Returns a folder's own files and folders."""
        return {*self._below.list(key), *(name.split("/", 1)[0] for name in self._names(key))}

    def sizes(self, key: str) -> dict[str, int]:
        """Returns the bytes of every file below a folder."""
        kept = {name: len(self._kept[f"{key}/{name}"][0]) for name in self._names(key)}
        return {**self._below.sizes(key), **kept}

    def delete(self, key: str) -> None:
        """Removes a file, or a folder with all below it."""
        for name in self._names(key):
            del self._kept[f"{key}/{name}"]
        self._kept.pop(key, None)
        self._below.delete(key)

    def _names(self, key: str) -> Sequence[str]:
        prefix = f"{key}/"
        return [each.removeprefix(prefix) for each in self._kept if each.startswith(prefix)]


_libc = ctypes.CDLL(None, use_errno=True)  # Python has `os.sync` only, for all disks at once


class LocalFiles:
    """Writes beside the target, syncs, renames. Implements `Files`.

    Args:
        durable: Whether a file is on the disk when it was written; else `settle` sees to that.
    """

    def __init__(self, *, durable: bool = True) -> None:
        self._durable = durable

    def settle(self, key: str) -> None:
        """Puts everything on the disk that was written to the file system of a folder."""
        descriptor = os.open(key, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), key)
        finally:
            os.close(descriptor)

    def exists(self, key: str) -> bool:
        """Tells whether a file or a folder of that name exists."""
        return Path(key).exists()

    def size(self, key: str) -> int:
        """Returns a file's bytes."""
        return Path(key).stat().st_size

    def times(self, keys: Sequence[str]) -> dict[str, float]:
        """Returns when files were written, in seconds since 1970."""
        found: dict[str, float] = {}
        for key in keys:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[key] = Path(key).stat().st_mtime
        return found

    def read(self, key: str) -> bytes:
        """Returns a file's content."""
        return Path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        """Writes a whole file."""
        with self._replacing(key, buffering=0) as file:
            view = memoryview(data)
            while view:  # one write call may take less than it was given (2 GiB on Linux)
                view = view[file.write(view) :]

    @contextmanager
    def open(self, key: str) -> Generator[IO[bytes]]:
        """Opens a file for buffered reading."""
        with Path(key).open("rb", buffering=BUFFER_BYTES) as file:
            yield file

    @contextmanager
    def create(self, key: str) -> Generator[IO[bytes]]:
        """Streams a file that appears when the block ends, and not at all when it raises."""
        with self._replacing(key, buffering=BUFFER_BYTES) as file:
            yield file

    def list(self, key: str) -> Iterable[str]:
        """Returns a folder's own files and folders."""
        try:
            return [path.name for path in Path(key).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()

    def sizes(self, key: str) -> dict[str, int]:
        """Returns the bytes of every file below a folder."""
        try:
            return dict(_walk(key, ""))
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def delete(self, key: str) -> None:
        """Removes a file, or a folder with all below it."""
        path = Path(key)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def _replacing(self, key: str, *, buffering: int) -> Generator[IO[bytes]]:
        folder = os.path.dirname(key)  # noqa: PTH120 - pathlib costs as much as the write itself
        temporary = f"{folder}/{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        opened = _open_new(folder, temporary, durable=self._durable)
        with os.fdopen(opened, "wb", buffering=buffering) as file:
            try:
                yield file
                file.flush()
                if self._durable:
                    os.fsync(file.fileno())
                os.replace(temporary, key)  # noqa: PTH105
            except BaseException as error:
                with suppress(FileNotFoundError):
                    os.unlink(temporary)  # noqa: PTH108
                if isinstance(error, OSError) and error.filename is None:
                    error.filename = key  # a full disk does not say where
                raise
        if self._durable:
            _sync_folder(folder)


def _open_new(folder: str, path: str, *, durable: bool) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        _make_folder(Path(folder), durable=durable)
        return os.open(path, flags, 0o666)


def _make_folder(folder: Path, *, durable: bool) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()] if durable else []
    folder.mkdir(parents=True, exist_ok=True)
    for created in missing:
        _sync_folder(str(created.parent))


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # removed since it was listed
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path, f"{prefix}{entry.name}/")
                else:
                    yield prefix + entry.name, entry.stat().st_size
