"""The files of a task as others may see them, and files that others leave with it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any, cast

from mloc_dagster.api.file_stream import StoredFile
from mloc_dagster.api.names import inside, safe_name, safe_task_id
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState
from mloc_dagster.api.submission_body import Upload
from mloc_dagster.errors import IncompleteResultsError, nearest_hint
from mloc_dagster.results.aggregate import RESPONSES_NAME
from mloc_dagster.results.files import BUFFER_BYTES
from mloc_dagster.results.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from mloc_dagster.results.own_names import is_own_name
from mloc_dagster.results.record import RECORD_NAME
from mloc_dagster.results.store import Folder
from mloc_dagster.wire import FileView, ResultIn, ResultStored

INTERNAL_FOLDERS = ("input", "shards")
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
