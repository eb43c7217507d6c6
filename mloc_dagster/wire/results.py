"""Results and files over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from mloc_dagster.wire.base import Moment, Reply, Wire


class ResultIn(Wire):
    """Body of `POST /api/v1/results`: a `responses.json`."""

    task_id: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,199}$")
    worker_id: str | None = Field(default=None, max_length=200)
    metadata: Mapping[str, JsonValue] = {}
    received_at: Moment | None = None
    """By default now."""
    result: Mapping[str, JsonValue]


class ResultStored(Reply):
    """201 when it is new, 200 when it was there."""

    task_id: str
    name: str
    """The file's name below the task's folder."""
    size: int
    sha256: str
    stored: bool
    """False when the same content was there."""


class FileView(Wire):
    """A file of a task."""

    name: str
    """Below the task's folder, with forward slashes."""
    size: int
    sha256: str | None = None
    """As the manifest says; null where it does not."""


class FilePage(Reply):
    """`GET /api/v1/results/{id}/files`."""

    task_id: str
    count: int
    files: tuple[FileView, ...]


class FilesStored(Reply):
    """201 of `POST /api/v1/results/{id}/files`."""

    task_id: str
    count: int
    files: tuple[ResultStored, ...]
