"""A task's files as one tar, written while it is sent: nothing is kept but a block."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Iterator, Sequence

from mloc_dagster.api.file_stream import BLOCK_BYTES
from mloc_dagster.results.store import Folder


def tar_blocks(folder: Folder, names: Sequence[str]) -> Iterator[bytes]:
    """Yields a tar of some files of a task, below a folder with the task's id.

    A file that grows meanwhile is cut where it was, one that shrinks is filled up: what has been
    announced must follow. One that is gone is left out.
    """
    for name in names:
        try:
            size = folder.size(name)
            opened = folder.open(name)
            file = opened.__enter__()
        except FileNotFoundError:
            continue
        try:
            yield _header(f"{folder.name}/{name}", size)
            left = size
            while left > 0:
                block = file.read(min(BLOCK_BYTES, left)) or bytes(min(BLOCK_BYTES, left))
                left -= len(block)
                yield block
        finally:
            opened.__exit__(None, None, None)
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, int(time.time())
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
