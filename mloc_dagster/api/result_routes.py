"""Results and files: out in any format, in from workers elsewhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from mloc_dagster.api.openapi import FILES_BODY, binary, problems
from mloc_dagster.api.parameters import MAX_NAME_BYTES, TaskId, safe_name
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.api.stored_files import (
    OCTETS,
    file_response,
    files_of,
    in_thread,
    keep_files,
    keep_result,
    stored_file,
    tar_blocks,
)
from mloc_dagster.api.submission_body import Upload
from mloc_dagster.api.trajectory import trajectory_view
from mloc_dagster.results import Folder, find_trajectory
from mloc_dagster.wire import FilePage, FilesStored, ResultIn, ResultStored, TrajectoryView

ResultFormat = Literal["json", "parquet", "jsonl", "csv"]

MEDIA_TYPES: dict[ResultFormat, str] = {
    "json": "application/json",
    "parquet": "application/vnd.apache.parquet",
    "jsonl": "application/x-ndjson",
    "csv": "text/csv",
}
_BATCH_ROWS = 4_096


def can_convert(folder: Folder, wanted: ResultFormat) -> bool:
    """Tells whether rows can be written as `wanted` though there is no such file."""
    return wanted in ("jsonl", "csv") and folder.exists("responses.parquet")


def converted(folder: Folder, wanted: ResultFormat) -> Iterator[bytes]:
    """Yields the rows of `responses.parquet` in another format, as `results.export` writes it."""
    from pyarrow import parquet

    with folder.open("responses.parquet") as file, parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        write = _csv if wanted == "csv" else _jsonl_writer(names)
        if wanted == "csv":
            yield _csv([[name] for name in names])
        for batch in table.iter_batches(_BATCH_ROWS):
            yield write([_cells(column) for column in batch.columns])


def _cells(column: Any) -> Sequence[object]:
    if column.null_count == len(column):
        return [None] * len(column)
    if column.null_count or column.type.num_fields:
        return column.to_pylist()
    return column.to_numpy(zero_copy_only=False).tolist()  # several times as fast


def _jsonl_writer(names: Sequence[str]) -> Callable[[Sequence[Sequence[object]]], bytes]:
    row = msgspec.defstruct("Row", [(name, object) for name in names])
    encoder = msgspec.json.Encoder()
    return lambda columns: encoder.encode_lines(
        [row(*cells) for cells in zip(*columns, strict=True)]
    )


def _csv(columns: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    cells = [map(_cell, column) for column in columns]
    csv.writer(text, lineterminator="\r\n").writerows(zip(*cells, strict=True))  # RFC 4180
    return text.getvalue().encode()


def _cell(cell: object) -> object:
    return msgspec.json.encode(cell).decode() if isinstance(cell, list) else cell


router = APIRouter(prefix="/api/v1/results", tags=["results"])

_MOST_FILES = 1_000
MAX_INDEX = 2**53
FileName = Annotated[
    str,
    Path(min_length=1, max_length=MAX_NAME_BYTES, description="Below the task's folder."),
]


@router.post(
    "",
    status_code=201,
    response_model=ResultStored,
    responses={200: {"model": ResultStored}, **problems(400, 408, 409, 413, 422)},
    summary="Leave a result",
)
async def post_result(api: State, request: Request, result: ResultIn) -> Response:
    """Takes a result document of a task that ran elsewhere; the same again changes nothing."""
    stored = await run_in_threadpool(keep_result, api, result, await request.body())
    return reply(stored, 201 if stored.stored else 200)


@router.get(
    "/{task_id}",
    response_class=Response,
    responses={
        200: binary(*MEDIA_TYPES.values(), "application/x-tar"),
        206: binary(*MEDIA_TYPES.values()),
        304: {"description": "It is as it was."},
        **problems(404, 409, 416, 422),
    },
    summary="Read results",
)
async def get_result(
    api: State,
    request: Request,
    task_id: TaskId,
    format: Annotated[ResultFormat, Query(description="What to return.")] = "json",
    bundle: Annotated[
        Literal["tar"] | None, Query(description="All files of the task instead.")
    ] = None,
) -> Response:
    """Streams a result, in ranges where it is a file; `format` and `bundle` say what."""
    folder = api.store.task(task_id)
    if bundle is not None:
        return await _bundle(api, folder)
    return await run_in_threadpool(_formatted, api, folder, format, request)


async def _bundle(api: ApiState, folder: Folder) -> Response:
    names = [each.name for each in await run_in_threadpool(files_of, folder)]
    if not names:
        raise await run_in_threadpool(_not_there, api, folder, "nothing")
    headers = {"Content-Disposition": f'attachment; filename="{folder.name}.tar"'}
    return StreamingResponse(
        in_thread(tar_blocks(folder, names)), media_type="application/x-tar", headers=headers
    )


def _formatted(api: ApiState, folder: Folder, wanted: ResultFormat, request: Request) -> Response:
    name = f"responses.{wanted}"
    if folder.exists(name):
        file = stored_file(folder, name)
        return file_response(file, request.headers, attached=wanted != "json")
    if can_convert(folder, wanted):
        stored_file(folder, "responses.parquet")  # refused here, if it is not whole
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        blocks = in_thread(converted(folder, wanted))
        return StreamingResponse(blocks, media_type=MEDIA_TYPES[wanted], headers=headers)
    raise _not_there(api, folder, name)


def _not_there(api: ApiState, folder: Folder, what: str) -> Refusal:
    entry = api.ledger.task(folder.name)
    there = sorted(name for name in folder.list() if name.startswith("responses."))
    if entry is None and not folder.exists("task.json") and not there:
        return Refusal(404, "unknown-task", f"there is no task {folder.name}, nor a result of one")
    if entry is not None and not entry.state.ended:
        why = f"{folder.name} is {entry.state.value}: its results are not there yet"
        return Refusal(404, "not-ready", why)
    listed = f"; there is {', '.join(there)}" if there else ""
    state = f" ({entry.state.value})" if entry is not None else ""
    return Refusal(404, "no-result", f"{folder.name}{state} has no {what}{listed}")


@router.get(
    "/{task_id}/trajectories/{index}",
    response_model=TrajectoryView,
    responses=problems(404, 422),
    summary="Read how an agent came to an answer",
)
def get_trajectory(
    api: State,
    task_id: TaskId,
    index: Annotated[int, Path(ge=0, le=MAX_INDEX, description="The row, from 0.")],
) -> Response:
    """Returns a row's turns and calls, as far as they have come."""
    folder = api.store.task(task_id)
    found = find_trajectory(folder, index)
    if found is None:
        raise _not_there(api, folder, f"trajectory of row {index}")
    return reply(trajectory_view(task_id, index, *found))


@router.get(
    "/{task_id}/files",
    response_model=FilePage,
    responses=problems(404, 422),
    summary="List a task's files",
)
def list_files(api: State, task_id: TaskId) -> Response:
    """Returns what a task left, with sizes, and hashes where the manifest has them."""
    folder = api.store.task(task_id)
    files = files_of(folder)
    if not files:
        raise _not_there(api, folder, "files")
    return reply(FilePage(task_id=task_id, count=len(files), files=tuple(files)))


@router.post(
    "/{task_id}/files",
    status_code=201,
    response_model=FilesStored,
    responses={200: {"model": FilesStored}, **problems(400, 408, 409, 413, 422)},
    openapi_extra=FILES_BODY,
    summary="Leave files with a task",
)
async def post_files(api: State, request: Request, task_id: TaskId) -> Response:
    """Takes files as a form, each under its file name; the same again changes nothing."""
    try:
        uploads = await _uploads(request)
        stored = await run_in_threadpool(keep_files, api, task_id, uploads)
    finally:
        await request.close()
    answer = FilesStored(task_id=task_id, count=len(stored), files=stored)
    return reply(answer, 201 if any(each.stored for each in stored) else 200)


async def _uploads(request: Request) -> list[Upload]:
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise Refusal(422, "invalid-request", "send the files as multipart/form-data")
    form = await request.form(max_files=_MOST_FILES, max_fields=_MOST_FILES)
    uploads: list[Upload] = []
    for field, value in form.multi_items():
        if not isinstance(value, UploadFile) or not value.filename:
            detail = f"the field {field[:100]!a} is no file with a name"
            raise Refusal(422, "invalid-request", detail)
        uploads.append(Upload(safe_name(value.filename), value))
    if not uploads:
        raise Refusal(422, "invalid-request", "the form has no file")
    return uploads


@router.get(
    "/{task_id}/files/{name:path}",
    response_class=Response,
    responses={
        200: binary(OCTETS, *MEDIA_TYPES.values(), "text/plain", "application/x-tar"),
        206: binary(OCTETS, *MEDIA_TYPES.values(), "text/plain", "application/x-tar"),
        304: {"description": "It is as it was."},
        **problems(404, 409, 416, 422),
    },
    summary="Read a file of a task",
)
def get_file(api: State, request: Request, task_id: TaskId, name: FileName) -> Response:
    """Streams a file, or a range of it."""
    file = stored_file(api.store.task(task_id), name)
    return file_response(file, request.headers, attached=PurePosixPath(name).suffix != ".json")
