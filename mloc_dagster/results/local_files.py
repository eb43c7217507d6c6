"""Files on a local disk, without fsspec: a task of a million rows writes thousands of them."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mloc_dagster.results.files import BUFFER_BYTES, TEMPORARY_PREFIX

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
