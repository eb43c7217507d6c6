"""Files of the store as answers: a block at a time, as fast as the client reads, in ranges."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO
from urllib.parse import quote

from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from mloc_dagster.api.problems import Refusal
from mloc_dagster.results.store import Folder

BLOCK_BYTES = 1 << 20
"""Fewer, and the way to a thread and back costs more than the reading."""

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".csv": "text/csv",
    ".log": "text/plain",
    ".txt": "text/plain",
    ".tar": "application/x-tar",
}
OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that exists.

    Attributes:
        folder: The task's folder.
        name: Below it.
        size: Bytes.
        sha256: Of the content, where the manifest says it.
    """

    folder: Folder
    name: str
    size: int
    sha256: str | None = None

    @property
    def etag(self) -> str | None:
        """Changes when the content does; None where nothing is known of that."""
        return None if self.sha256 is None else f'"{self.sha256}"'

    @property
    def media_type(self) -> str:
        """What the file is."""
        return _TYPES.get(PurePosixPath(self.name).suffix.lower(), OCTETS)


def file_response(file: StoredFile, headers: Headers, *, attached: bool = True) -> Response:
    """Returns a file, or the range of it that was asked for.

    Raises:
        Refusal: 416, if the range lies outside.
    """
    shown = {
        "Accept-Ranges": "bytes",
        # What somebody uploaded is never a page of this site.
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
    }
    if file.etag is not None:
        shown["ETag"] = file.etag
    if attached:
        name = quote(PurePosixPath(file.name).name, safe="")
        shown["Content-Disposition"] = f"attachment; filename*=utf-8''{name}"
    if file.etag is not None and headers.get("if-none-match") in (file.etag, "*"):
        return Response(status_code=304, headers=shown)
    wanted = _range(headers, file)
    start, end = wanted or (0, file.size)
    shown["Content-Length"] = str(end - start)
    if wanted is not None:
        shown["Content-Range"] = f"bytes {start}-{end - 1}/{file.size}"
    return StreamingResponse(
        blocks_of(lambda: file.folder.open(file.name), start, end),
        status_code=200 if wanted is None else 206,
        headers=shown,
        media_type=file.media_type,
    )


async def blocks_of(
    open_file: Callable[[], AbstractContextManager[IO[bytes]]], start: int, end: int
) -> AsyncIterator[bytes]:
    """Yields a part of a file; a thread is taken for each block, not for the whole."""
    context = open_file()
    file = await run_in_threadpool(context.__enter__)
    try:
        if start:
            await run_in_threadpool(file.seek, start)
        left = end - start
        while left > 0:
            block = await run_in_threadpool(file.read, min(BLOCK_BYTES, left))
            if not block:
                raise OSError("a file became shorter while it was sent")
            left -= len(block)
            yield block
    finally:
        context.__exit__(None, None, None)


async def in_thread(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yields what a generator yields, each item computed in a thread when it is wanted."""
    try:
        while (block := await run_in_threadpool(next, blocks, None)) is not None:
            yield block
    finally:
        close = getattr(blocks, "close", None)
        if close is not None:
            close()


def _range(headers: Headers, file: StoredFile) -> tuple[int, int] | None:
    """Returns start and end; None for all of it, which also answers what is not understood."""
    found = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if found is None or headers.get("if-range") not in (None, file.etag):
        return None
    first, last = found[1], found[2]
    if not first and not last:
        return None
    if not first:
        start, end = max(0, file.size - int(last)), file.size
    else:
        start, end = int(first), min(file.size, int(last) + 1 if last else file.size)
        if last and int(last) < start:
            return None
    if start >= file.size or start >= end:
        detail = f"the file has {file.size:,} bytes"
        raise Refusal(
            416, "range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{file.size}"}
        )
    return start, end
