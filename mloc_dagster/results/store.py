"""Where results lie: one folder a task, on a local disk or behind any fsspec URL.

Files appear whole or not at all, for readers in this process and in any other.
"""

from __future__ import annotations

import builtins
import os
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

from mloc_dagster.errors import InputError
from mloc_dagster.results.files import TEMPORARY_PREFIX, Files, LocalFiles, StagedFiles, visible
from mloc_dagster.settings import settings

_TASK_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}")
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(://|::)")


class Folder:
    """A folder of the store. Names are relative to it, with forward slashes.

    Attributes:
        store: The store that it belongs to.
        name: Its name below the store's root; empty for the root.
        url: Full address: an absolute path on a local disk, else an fsspec URL.
    """

    def __init__(self, store: ResultStore, files: Files, root: str, name: str) -> None:
        self.store = store
        self.name = name
        self.url = f"{store.url}/{name}" if name else store.url
        self._files = files
        self._key = f"{root}/{name}" if name else root

    def __repr__(self) -> str:
        return f"Folder({self.url!r})"

    def exists(self, name: str) -> bool:
        """Tells whether a file, or a folder with something in it, has this name."""
        return self._files.exists(self._path(name))

    def size(self, name: str) -> int:
        """Returns the bytes of a file; raises `FileNotFoundError` without one."""
        return self._files.size(self._path(name))

    def read_bytes(self, name: str) -> bytes:
        """Returns the content of a file; raises `FileNotFoundError` without one."""
        return self._files.read(self._path(name))

    def write_bytes(self, name: str, data: bytes) -> None:
        """Writes a whole file, atomically."""
        self._files.write(self._path(name), data)

    def open(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Opens a file for buffered binary reading; raises `FileNotFoundError` without one."""
        return self._files.open(self._path(name))

    def create(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """Streams a file: it appears when the block ends, and not at all when the block raises."""
        return self._files.create(self._path(name))

    def list(self, name: str = "", *, recursive: bool = False) -> builtins.list[str]:
        """Returns sorted names, each relative to *this* folder and so fit for `open` as it is.

        Args:
            name: Where to look; this folder itself by default. A missing one holds nothing.
            recursive: Files of all depths; otherwise the files and folders right there.
        """
        if recursive:
            return builtins.list(self.sizes(name))
        key, prefix = self._place(name)
        return sorted(prefix + found for found in visible(self._files.list(key)))

    def sizes(self, name: str = "") -> dict[str, int]:
        """Returns the bytes of every file at any depth, from one listing; sorted by name.

        Args:
            name: Where to look, as for `list`; names are relative to this folder all the same.
        """
        key, prefix = self._place(name)
        found = self._files.sizes(key)
        return {prefix + each: found[each] for each in sorted(visible(found))}

    def delete(self, name: str) -> None:
        """Removes a file, or a folder with all below it; a missing one is no error."""
        self._files.delete(self._path(name))

    def _place(self, name: str) -> tuple[str, str]:
        return (self._path(name), f"{check_name(name)}/") if name else (self._key, "")

    def _path(self, name: str) -> str:
        return f"{self._key}/{check_name(name)}"


class ResultStore:
    """All results.

    Attributes:
        url: An absolute path on a local disk, else an fsspec URL; no slash at the end.
    """

    def __init__(self, url: str, files: Files, root: str) -> None:
        self.url = url
        self._files = files
        self._root = root

    def __repr__(self) -> str:
        return f"ResultStore({self.url!r})"

    def task(self, task_id: str) -> Folder:
        """Returns the folder of a task, which need not exist yet.

        Raises:
            InputError: If it is no task id.
        """
        return self.folder(check_task_id(task_id))

    def folder(self, relative_path: str) -> Folder:
        """Returns a folder below the root, which need not exist yet.

        Raises:
            InputError: If the path leaves the store.
        """
        return Folder(self, self._files, self._root, check_name(relative_path))

    def unsettled(self) -> ResultStore:
        """Returns the same store, whose writes are not durable before `settle` was called.

        For many small files that are worth something only together. They appear whole all the same.
        """
        local = isinstance(self._files, LocalFiles)
        files = LocalFiles(durable=False) if local else self._files
        return ResultStore(self.url, files, self._root)

    def staged(self) -> ResultStore:
        """Returns the same store, whose writes stay in memory until `flush` was called."""
        return ResultStore(self.url, StagedFiles(self._files), self._root)

    def flush(self, but: Sequence[str] = ()) -> None:
        """Writes what a store from `staged` has kept.

        Args:
            but: Names below the root that are to be kept still.
        """
        if isinstance(self._files, StagedFiles):
            self._files.flush([f"{self._root}/{check_name(name)}" for name in but])

    def settle(self) -> None:
        """Makes what was written durable."""
        if isinstance(self._files, LocalFiles):
            self._files.settle(self._root)

    def task_ids(self) -> Iterator[str]:
        """Yields the ids of the tasks that were submitted here, in order of name."""
        for name in sorted(visible(self._files.list(self._root))):
            if _TASK_ID.fullmatch(name) and self._files.exists(f"{self._root}/{name}/task.json"):
                yield name

    def newest(self, name: str, among: int = 10_000) -> Iterator[Folder]:
        """Yields the folders of tasks that hold a file, the latest written first.

        Args:
            name: The file's name in a task's folder.
            among: At most so many folders are looked at, in order of name.
        """
        listed = sorted(visible(self._files.list(self._root)))
        ids = [each for each in listed if _TASK_ID.fullmatch(each)][:among]
        keys = {f"{self._root}/{each}/{check_name(name)}": each for each in ids}
        times = self._files.times(list(keys))
        for key in sorted(times, key=lambda key: (-times[key], key)):
            yield self.task(keys[key])


_chosen: ContextVar[str | None] = ContextVar("results_url", default=None)


@contextmanager
def results_at(url: str | None) -> Generator[None]:
    """Makes a store the one that is opened by default, in this thread and until the block ends.

    Args:
        url: A folder, or any fsspec URL; None leaves all as it is.
    """
    token = _chosen.set(_chosen.get() if url is None else url)
    try:
        yield
    finally:
        _chosen.reset(token)


def open_store(url: str | None = None) -> ResultStore:
    """Opens a store; nothing is created before the first write.

    Args:
        url: A folder, or any fsspec URL such as `s3://bucket/prefix`; by default that of
            `results_at`, else the setting `MLOC_RESULTS_URL`.

    Raises:
        InputError: If fsspec does not know the URL's protocol.
        MissingExtraError: If the package for that protocol is not installed.
    """
    if url is None:
        url = _chosen.get() or settings().results_url
    if not url.strip() or "\0" in url:
        raise InputError(f"{url!r} is no place for results: give a folder or an fsspec URL")
    protocol = _PROTOCOL.match(url)
    if protocol is None or protocol[1] in ("file", "local"):
        path = _local_path(url) if protocol else url
        root = str(Path(path).expanduser().absolute()).rstrip("/")
        return ResultStore(root or "/", LocalFiles(), root)
    from mloc_dagster.results.remote_files import connect

    files, root = connect(url)
    return ResultStore(url.rstrip("/"), files, root)


def check_task_id(task_id: str) -> str:
    """Returns the id; raises `InputError` unless it is one."""
    if _TASK_ID.fullmatch(task_id) is None:
        raise InputError(
            f"{task_id!r} is no task id: expected 1 to 200 of A-Z a-z 0-9 . _ - and no leading dot"
        )
    return task_id


def check_name(name: str) -> str:
    """Returns a relative name without its trailing slash; raises `InputError` if it is unsafe."""
    trimmed = name.rstrip("/")
    parts = trimmed.split("/")
    unsafe = "" in parts or "." in parts or ".." in parts or "\0" in name or "\\" in name
    if unsafe or any(part.startswith(TEMPORARY_PREFIX) for part in parts):
        raise InputError(
            f"{name!r} is no name inside a results folder: expected a relative path with forward "
            f"slashes, without '.', '..' or empty parts, and none starting with {TEMPORARY_PREFIX}"
        )
    return trimmed


def inside(folder: Folder, name: str) -> bool:
    """Tells whether a file of a local store really lies in it, links followed."""
    if "://" in folder.store.url:
        return True
    root = os.path.realpath(folder.store.url)
    found = os.path.realpath(Path(folder.url, name))
    return found.startswith(root.rstrip("/") + "/")


def _local_path(url: str) -> str:
    _, _, rest = url.partition("://")
    return unquote(urlsplit(url).path) if rest.startswith("/") else rest
