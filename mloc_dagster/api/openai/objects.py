"""OpenAI's objects as they travel: files, batches, pages of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

Seconds = int
"""Of a moment, since 1970."""

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]

BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class FileObject(_Object):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: Seconds
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    expires_at: Seconds | None = None
    """Always null: files stay until they are deleted."""


class FilePage(_Object):
    """Some files."""

    object: Literal["list"] = "list"
    data: tuple[FileObject, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(_Object):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class BatchError(_Object):
    """Why a batch failed."""

    code: str | None = None
    line: int | None = None
    """The line of the input file, from 1."""
    message: str
    param: str | None = None


class BatchErrors(_Object):
    """Why a batch failed, all of it."""

    object: Literal["list"] = "list"
    data: tuple[BatchError, ...]


class RequestCounts(_Object):
    """How far a batch is."""

    total: int
    completed: int
    failed: int


class InputTokens(_Object):
    """What was read."""

    cached_tokens: int


class OutputTokens(_Object):
    """What was written."""

    reasoning_tokens: int = 0


class BatchUsage(_Object):
    """What a batch took."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens = OutputTokens()
    total_tokens: int


class Batch(_Object):
    """A batch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    model: str | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    errors: BatchErrors | None = None
    output_file_id: str | None = None
    """The file with the answers; null if there is none."""
    error_file_id: str | None = None
    """The file with the requests that failed; null if none did."""
    created_at: Seconds
    in_progress_at: Seconds | None = None
    expires_at: Seconds | None = None
    """When it should be done; it goes on afterwards. Null with a window of 24 hours."""
    finalizing_at: Seconds | None = None
    completed_at: Seconds | None = None
    failed_at: Seconds | None = None
    expired_at: Seconds | None = None
    cancelling_at: Seconds | None = None
    cancelled_at: Seconds | None = None
    request_counts: RequestCounts
    usage: BatchUsage | None = None
    metadata: Mapping[str, str] | None = None
    mloc: Mapping[str, str] = {}
    """`task_id`: the task that answers it, for `/api/v1` and the command line."""


class BatchPage(_Object):
    """Some batches."""

    object: Literal["list"] = "list"
    data: tuple[Batch, ...]
    first_id: str | None
    last_id: str | None
    has_more: bool


Window = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,2}[mhd]$")]

_NO_DEADLINE = "24h"
_UNITS = {"m": 60, "h": 3_600, "d": 86_400}


def window_s(window: str) -> int | None:
    """Returns within how many seconds a batch should be done; None for the usual window.

    Every batch for OpenAI says 24 hours, as there is no other window: that is nobody's wish.
    """
    if window == _NO_DEADLINE:
        return None
    return int(window[:-1]) * _UNITS[window[-1]]


_Key = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00]*$")]
_Value = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]


class BatchOptions(_Object):
    """What mloc takes beyond OpenAI's fields, in `extra_body={"mloc": …}`."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, StringConstraints(min_length=1, max_length=500)] | None = None
    """What answers the batch, whatever its requests name; by default what they name."""
    set: Mapping[str, JsonValue] = {}
    """Paths of the task's template and their values, such as `spec.parallel.max_shards`."""


class BatchCreate(_Object):
    """A batch that is wanted."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]*$")]
    endpoint: Endpoint
    completion_window: Window = Field(
        description="`24h`, or within which time it should be done: minutes, hours or days, as `1h`"
    )
    metadata: Annotated[Mapping[_Key, _Value], Field(max_length=16)] | None = None
    mloc: BatchOptions = BatchOptions()
