"""Files of the store over HTTP: in blocks, in ranges, as a tar, with checks of who may see what."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from threading import Lock
from typing import IO, Any, cast
from urllib.parse import quote

from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers

from mloc_dagster.api.parameters import safe_name, safe_task_id
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState
from mloc_dagster.api.submission_body import Upload
from mloc_dagster.errors import IncompleteResultsError, nearest_hint
from mloc_dagster.results import (
    BUFFER_BYTES,
    MANIFEST_NAME,
    RECORD_NAME,
    RESPONSES_NAME,
    Folder,
    Manifest,
    inside,
    is_own_name,
    read_manifest,
    write_manifest,
)
from mloc_dagster.wire import FileView, ResultIn, ResultStored

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


INTERNAL_FOLDERS = ("input", "shards", "journal")
"""Thousands of small files that only the task itself reads."""

_NOBODYS = frozenset({RECORD_NAME, MANIFEST_NAME, "plan.json", RESPONSES_NAME})

# One at a time, whichever task: two might list each other's half of a manifest.
_manifests = Lock()


def files_of(folder: Folder) -> Sequence[FileView]:
    """Returns a task's files, without those that only the task itself reads."""
    known = _hashes(folder)
    return tuple(
        FileView(name=name, size=size, sha256=known.get((name, size)))
        for name, size in folder.sizes().items()
        if name.partition("/")[0] not in INTERNAL_FOLDERS and inside(folder, name)
    )


def stored_file(folder: Folder, name: str) -> StoredFile:
    """Returns a file; raises a 404 `Refusal` without one."""
    name = safe_name(name)
    try:
        size = folder.size(name)
        with folder.open(name):  # a folder has a size, too
            if inside(folder, name):
                return StoredFile(folder, name, size, _sound(folder, name, size))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        pass  # said below, as for one that lies elsewhere
    hint = nearest_hint(name, [each.name for each in files_of(folder)])
    raise Refusal(404, "unknown-file", f"{folder.name} has no file {name!a}{hint}")


def keep_result(api: ApiState, result: ResultIn, body: bytes) -> ResultStored:
    """Stores a result document that came from outside.

    The same again changes nothing. A task that was accepted here gets its results from the fleet
    that runs it: another one for it is refused.

    Args:
        api: Knows which tasks are ours.
        result: The document.
        body: The same as it came; it is stored so when nothing is missing, for its sender's hash.

    Raises:
        Refusal: 409, if it is another result for a task of ours.
    """
    folder = api.store.task(safe_task_id(result.task_id))
    with _manifests:
        known = _earlier(folder)
        received_at = result.received_at or (known and known.received_at) or datetime.now(UTC)
        document = result.model_copy(update={"received_at": received_at})
        complete = result.received_at is not None
        data = body if complete else document.model_dump_json(indent=2).encode() + b"\n"
        same = known is not None and known == document
        if not same and _is_ours(api, folder):
            raise Refusal(
                409, "is-ours", f"{result.task_id} was accepted here, and has its results from here"
            )
        if same:
            data = folder.read_bytes(RESPONSES_NAME)
        else:
            folder.write_bytes(RESPONSES_NAME, data)
        write_manifest(folder, _required(folder, RESPONSES_NAME))
    return _stored(folder, RESPONSES_NAME, len(data), hashlib.sha256(data).hexdigest(), not same)


def keep_files(api: ApiState, task_id: str, uploads: Sequence[Upload]) -> tuple[ResultStored, ...]:
    """Stores files of a task that came from outside; the same again changes nothing.

    A task that was accepted here takes files once it has ended, and none by a name that mloc
    writes: what lies there decides what is still to be done, and what is served as its result.

    Raises:
        Refusal: 409, if a file of a task of ours would be replaced, or one that is nobody's.
    """
    folder = api.store.task(safe_task_id(task_id))
    if _is_ours(api, folder):
        _check_ours(api, folder, [each.name for each in uploads])
    stored = tuple(_keep_file(api, folder, each) for each in uploads)
    with _manifests:
        if any(each.stored for each in stored) or not folder.exists(MANIFEST_NAME):
            write_manifest(folder, _required(folder))
    return stored


def _check_ours(api: ApiState, folder: Folder, names: Sequence[str]) -> None:
    entry = api.ledger.task(folder.name)
    ended = entry.state.ended if entry is not None else folder.exists(MANIFEST_NAME)
    if not ended:
        state = entry.state.value if entry is not None else "not done"
        detail = f"{folder.name} is {state}: files may be left with it once it has ended"
        raise Refusal(409, "is-ours", detail)
    for name in names:
        if is_own_name(name):
            raise Refusal(409, "is-ours", f"{name} of {folder.name} is written by mloc alone")


def _keep_file(api: ApiState, folder: Folder, upload: Upload) -> ResultStored:
    name, source = upload.name, upload.file.file
    source.seek(0)
    digest = hashlib.file_digest(cast(Any, source), "sha256").hexdigest()
    size = source.tell()
    if _content(folder, name) == digest:
        return _stored(folder, name, size, digest, False)
    if name in _NOBODYS or name.partition("/")[0] in INTERNAL_FOLDERS:
        detail = f"{name} is written by mloc; a result document goes to POST /api/v1/results"
        raise Refusal(409, "is-ours", detail)
    if not inside(folder, name):
        raise Refusal(422, "invalid-name", f"{name!a} leads out of the task's folder")
    if folder.exists(name) and _is_ours(api, folder):
        raise Refusal(409, "is-ours", f"{folder.name} has another file {name} already")
    source.seek(0)
    try:
        with folder.create(name) as target:
            shutil.copyfileobj(source, target, BUFFER_BYTES)
    except (IsADirectoryError, NotADirectoryError, FileExistsError):
        detail = f"{name!a} cannot stand beside a file or folder of {folder.name}"
        raise Refusal(409, "name-taken", detail) from None
    return _stored(folder, name, size, digest, True)


def _is_ours(api: ApiState, folder: Folder) -> bool:
    return folder.exists(RECORD_NAME) or api.ledger.task(folder.name) is not None


def _earlier(folder: Folder) -> ResultIn | None:
    try:
        return ResultIn.model_validate_json(folder.read_bytes(RESPONSES_NAME))
    except (FileNotFoundError, ValueError):
        return None


def _content(folder: Folder, name: str) -> str | None:
    try:
        with folder.open(name) as file:
            return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


def _manifest(folder: Folder) -> Manifest | None:
    try:
        return read_manifest(folder)
    except IncompleteResultsError:
        return None


def _required(folder: Folder, *names: str) -> list[str]:
    manifest = _manifest(folder)
    known = [each.path for each in manifest.entries if each.required] if manifest else []
    return list(dict.fromkeys((*known, *names)))


def _hashes(folder: Folder) -> dict[tuple[str, int], str]:
    manifest = _manifest(folder)
    if manifest is None:
        return {}
    return {(each.path, each.size): each.sha256 for each in manifest.entries if each.sha256}


def _sound(folder: Folder, name: str, size: int) -> str | None:
    """Returns a file's hash where the manifest has one.

    Raises:
        Refusal: 409, if a result is not as long as the manifest says.
    """
    manifest = _manifest(folder)
    entries = () if manifest is None else manifest.entries
    entry = next((each for each in entries if each.path == name), None)
    if entry is None or entry.size == size:
        return None if entry is None else entry.sha256
    if name.startswith("responses."):
        detail = (
            f"{name} has {size:,} bytes, and {entry.size:,} by the manifest: it was cut off or"
            f" changed, or is being written anew; ask again, or `mloc retry {folder.name}`"
        )
        raise Refusal(409, "damaged-file", detail)
    return None  # logs grow


def _stored(folder: Folder, name: str, size: int, digest: str, stored: bool) -> ResultStored:
    return ResultStored(task_id=folder.name, name=name, size=size, sha256=digest, stored=stored)
