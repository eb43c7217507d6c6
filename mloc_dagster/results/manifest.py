"""`manifest.json`, written last: a task's files with sizes and sha256; names of mloc alone."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from mloc_dagster.errors import DamagedFileError, IncompleteResultsError
from mloc_dagster.results.files import BUFFER_BYTES
from mloc_dagster.results.store import Folder, check_name

_FIRST_PARTS = frozenset(
    {
        *("task", "plan", "input", "shards", "journal", "logs", "manifest"),
        *("responses", "summary", "batch_output", "batch_errors"),
        *("training", "evaluation-before", "checkpoints"),
        *("final_model", "final_lora", "trained_model", "archives"),
    }
)
"""First parts of paths, without endings: `final_model` is the folder and `final_model.zip`."""


def is_own_name(name: str) -> bool:
    """Tells whether a file of a task's folder is mloc's to write, whether it is there or not.

    Args:
        name: Relative to the folder, with forward slashes.
    """
    first = name.split("/")[0]
    return first.startswith(".") or first.split(".")[0].casefold() in _FIRST_PARTS


MANIFEST_NAME = "manifest.json"

# Thousands of small files that the task itself reads; one entry each, without sha256.
_INTERNAL_FOLDERS = ("input", "shards", "journal")


class ManifestEntry(BaseModel):
    """One file, or one folder.

    Attributes:
        name: The last part of `path`.
        path: Where it is, below the task's folder.
        type: A folder stands for all files below it.
        required: Whether the template asked for it.
        status: Whether it is there.
        updated_at: When a manifest first listed this content; None while it is missing.
        size: Bytes; of all files below, for a folder.
        sha256: Of a file's content.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    path: str
    type: Literal["file", "directory"]
    required: bool
    status: Literal["present", "missing"]
    updated_at: AwareDatetime | None
    size: int
    sha256: str | None


class Manifest(BaseModel):
    """All that a task left.

    Attributes:
        task_id: The task.
        generated_at: When the entries were last different.
        entries: In order of path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    generated_at: AwareDatetime
    entries: tuple[ManifestEntry, ...]


class Difference(BaseModel):
    """What is not as the manifest says.

    Attributes:
        path: The file or folder.
        problem: `missing`, `changed`, or `unlisted` when the manifest does not know it.
        expected: What the manifest says; empty when it says nothing.
        found: What is there; empty when nothing is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    problem: Literal["missing", "changed", "unlisted"]
    expected: str
    found: str


def write_manifest(folder: Folder, required: Sequence[str]) -> Manifest:
    """Lists and hashes the task's files, and writes `manifest.json` if anything changed.

    Args:
        folder: The task's folder.
        required: Files and folders that must be there; each gets an entry, present or missing.
    """
    now = datetime.now(UTC)
    earlier = _read_earlier(folder)
    known = {entry.path: entry for entry in earlier.entries} if earlier else {}
    entries = tuple(_dated(entry, known, now) for entry in _survey(folder, required))
    if earlier is not None and earlier.entries == entries:
        return earlier
    manifest = Manifest(task_id=folder.name, generated_at=now, entries=entries)
    folder.write_bytes(MANIFEST_NAME, manifest.model_dump_json(indent=2).encode() + b"\n")
    return manifest


def read_manifest(folder: Folder) -> Manifest:
    """Reads `manifest.json`.

    Raises:
        IncompleteResultsError: If there is none, so the task is not done, or it is damaged.
    """
    try:
        return Manifest.model_validate_json(folder.read_bytes(MANIFEST_NAME))
    except FileNotFoundError:
        raise IncompleteResultsError(
            f"{folder.url} has no {MANIFEST_NAME}: the task is not done"
        ) from None
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        raise DamagedFileError(
            f"{folder.url}/{MANIFEST_NAME} is damaged ({reason}); mloc run --resume {folder.name} "
            "writes it again"
        ) from error


def verify_manifest(folder: Folder) -> tuple[Difference, ...]:
    """Compares the folder, content included, with its manifest; empty when all is as listed."""
    listed = {entry.path: entry for entry in read_manifest(folder).entries}
    required = [entry.path for entry in listed.values() if entry.required]
    found = {entry.path: entry for entry in _survey(folder, required)}
    compared = (_compare(path, listed.get(path), found.get(path)) for path in {*listed, *found})
    return tuple(sorted(filter(None, compared), key=lambda difference: difference.path))


def _compare(
    path: str, listed: ManifestEntry | None, found: ManifestEntry | None
) -> Difference | None:
    before, after = _describe(listed), _describe(found)
    if before == after:
        return None
    problem = "changed" if before and after else "missing" if before else "unlisted"
    return Difference(path=path, problem=problem, expected=before, found=after)


def _describe(entry: ManifestEntry | None) -> str:
    if entry is None or entry.status == "missing":
        return ""
    return f"{entry.size} bytes" + (f", sha256 {entry.sha256}" if entry.sha256 else "")


def _survey(folder: Folder, required: Iterable[str]) -> list[ManifestEntry]:
    sizes: defaultdict[str, int] = defaultdict(int)
    entries: dict[str, ManifestEntry] = {}
    wanted = {check_name(name) for name in required}
    for path, size in folder.sizes().items():
        top = path.split("/", 1)[0]
        for parent in _parents(path):
            if parent in wanted or parent in _INTERNAL_FOLDERS:
                sizes[parent] += size
        if top not in _INTERNAL_FOLDERS and path != MANIFEST_NAME:
            sha256 = _sha256(folder, path)
            entries[path] = _entry(path, "file", path in wanted, size, sha256)
        elif path in wanted and path != MANIFEST_NAME:
            entries[path] = _entry(path, "file", True, size, _sha256(folder, path))
    for path, size in sizes.items():
        entries[path] = _entry(path, "directory", path in wanted, size, None)
    for path in wanted - entries.keys() - {MANIFEST_NAME}:
        entries[path] = _entry(path, "file", True, None, None)
    return [entries[path] for path in sorted(entries)]


def _entry(
    path: str,
    kind: Literal["file", "directory"],
    required: bool,
    size: int | None,
    sha256: str | None,
) -> ManifestEntry:
    return ManifestEntry(
        name=path.rsplit("/", 1)[-1],
        path=path,
        type=kind,
        required=required,
        status="missing" if size is None else "present",
        updated_at=None,
        size=size or 0,
        sha256=sha256,
    )


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def _sha256(folder: Folder, path: str) -> str:
    digest = hashlib.sha256()
    with folder.open(path) as file:
        while block := file.read(BUFFER_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _dated(entry: ManifestEntry, known: dict[str, ManifestEntry], now: datetime) -> ManifestEntry:
    before = known.get(entry.path)
    if entry.status == "missing":
        return entry
    same = before is not None and _describe(before) == _describe(entry)
    return entry.model_copy(update={"updated_at": before.updated_at if same and before else now})


def _read_earlier(folder: Folder) -> Manifest | None:
    try:
        return Manifest.model_validate_json(folder.read_bytes(MANIFEST_NAME))
    except (FileNotFoundError, ValidationError):  # none yet, or of an older version
        return None
