"""Files that are written in memory first: a small task has eight, and half are read again."""

from __future__ import annotations

import io
import time
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

from mloc_dagster.results.files import Files


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
