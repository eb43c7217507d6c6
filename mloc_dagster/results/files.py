"""What a result store needs of the place where files lie. Keys are full paths there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
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
