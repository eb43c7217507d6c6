"""`/v1/files`: what batches read and leave."""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from mloc_dagster.api.acceptance import keep_upload
from mloc_dagster.api.openai.batch_state import BATCH, remove_unneeded, settle_all
from mloc_dagster.api.openai.errors import PREFIX, errors
from mloc_dagster.api.openai.objects import FileDeleted, FileObject, FilePage
from mloc_dagster.api.openapi import binary
from mloc_dagster.api.parameters import IdempotencyKey, no_other_parameters, safe_name
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.api.stored_files import OCTETS, StoredFile, file_response, stored_file
from mloc_dagster.api.submission_body import Upload
from mloc_dagster.ledger import FileEntry, PageOf
from mloc_dagster.wire import Finding

router = APIRouter(prefix=f"{PREFIX}/files", tags=["openai"])

_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
_FIELDS = ("file", "purpose")

ObjectId = Annotated[str, Path(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f/]+$")]
After = Annotated[
    str | None,
    Query(max_length=200, pattern=r"^[^\x00]*$", description="`last_id` of the page before."),
]
Order = Annotated[Literal["asc", "desc"], Query(description="By age; the newest first is `desc`.")]

_UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": [BATCH]},
                    },
                    "required": ["file", "purpose"],
                    "additionalProperties": False,
                }
            }
        },
    }
}


def invalid(param: str, message: str, kind: str = "invalid-request") -> Refusal:
    """Returns the refusal of a parameter."""
    return Refusal(422, kind, message, errors=[Finding(path=f"body.{param}", message=message)])


def object_id(prefix: str, key: str | None) -> str:
    """Returns a new id; the same for the same `Idempotency-Key`."""
    if key is None:
        return prefix + uuid.uuid4().hex
    return prefix + hashlib.sha256(f"{prefix}\n{key}".encode()).hexdigest()[:32]


def file_of(api: ApiState, file_id: str) -> FileEntry:
    """Returns a file; raises a 404 `Refusal` without one."""
    found = api.ledger.openai.file(file_id)
    if found is None:
        settle_all(api)  # what a batch left is known from then on
        found = api.ledger.openai.file(file_id)
    if found is None:
        raise Refusal(404, "unknown-file", f"there is no file {file_id!a}")
    return found


def address_of(api: ApiState, file: FileEntry) -> str:
    """Returns where a file is, as a template names it."""
    return f"{api.store.folder(file.folder).url}/{file.name}"


@router.post(
    "",
    response_model=FileObject,
    responses=errors(408, 409, 413),
    openapi_extra=_UPLOAD_BODY,
    summary="Upload a batch",
)
async def create_file(
    api: State, request: Request, idempotency_key: IdempotencyKey = None
) -> Response:
    """Takes the file of a batch; it is on disk when this answers."""
    try:
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise invalid("file", "send the file as multipart/form-data")
        form = await request.form(max_files=2, max_fields=16)
        upload = _upload(form)
        file_id = object_id("file-", idempotency_key)
        kept = await run_in_threadpool(_keep, api, upload, file_id)
    finally:
        await request.close()
    return reply(_shown(kept))


def _upload(form: FormData) -> Upload:
    unknown = sorted({name for name, _ in form.multi_items()} - set(_FIELDS))
    if unknown:
        hint = ": files stay until they are deleted" if unknown[0].startswith("expires_") else ""
        raise invalid(unknown[0][:100], f"{unknown[0][:100]!a} is not supported{hint}")
    purpose, file = form.get("purpose"), form.get("file")
    if purpose != BATCH:
        got = "it is missing" if purpose is None else f"got {str(purpose)[:100]!a}"
        raise invalid("purpose", f"purpose must be 'batch', for which alone files are kept; {got}")
    if not isinstance(file, UploadFile):
        raise invalid("file", "the form has no file; expected the field 'file', with a file name")
    if not file.size:
        raise invalid("file", "the file is empty")
    return Upload(safe_name(PurePosixPath(file.filename or "upload").name), file)


def _keep(api: ApiState, upload: Upload, file_id: str) -> FileEntry:
    # A name of its own: deleting a file never takes another's bytes away.
    ending = PurePosixPath(upload.name).suffix.lower()
    stored_as = f"{file_id}.jsonl{ending if ending in _COMPRESSED else ''}"
    folder, name = keep_upload(api.store, Upload(stored_as, upload.file))
    entry = FileEntry(
        file_id=file_id,
        filename=upload.name,
        purpose=BATCH,
        bytes=upload.file.size or 0,
        folder=folder.name,
        name=name,
        created_at=datetime.now(UTC),
    )
    known = api.ledger.openai.add_file(entry)
    if (known.folder, known.filename, known.deleted) != (entry.folder, entry.filename, False):
        if known.folder != entry.folder:
            folder.delete(name)
        raise Refusal(409, "key-reused", "the Idempotency-Key came before with another file")
    return known


@router.get(
    "",
    response_model=FilePage,
    responses=errors(),
    dependencies=[Depends(no_other_parameters("after", "limit", "order", "purpose"))],
    summary="List files",
)
def list_files(
    api: State,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
    purpose: Annotated[str | None, Query(max_length=100, pattern=r"^[^\x00]*$")] = None,
) -> Response:
    """Returns files, those that batches left included."""
    settle_all(api)
    wanted = PageOf(limit, after, ascending=order == "asc")
    entries, more = api.ledger.openai.files(wanted, purpose)
    page = FilePage(
        data=tuple(_shown(each) for each in entries),
        first_id=entries[0].file_id if entries else None,
        last_id=entries[-1].file_id if entries else None,
        has_more=more,
    )
    return reply(page)


@router.get("/{file_id}", response_model=FileObject, responses=errors(404), summary="Show a file")
def show_file(api: State, file_id: ObjectId) -> Response:
    """Returns what is known of a file."""
    return reply(_shown(file_of(api, file_id)))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={
        200: binary(OCTETS, "application/x-ndjson"),
        206: binary(OCTETS, "application/x-ndjson"),
        304: {"description": "It is as it was."},
        **errors(404, 409, 416),
    },
    summary="Read a file",
)
def read_file(api: State, request: Request, file_id: ObjectId) -> Response:
    """Streams a file, or a range of it."""
    entry = file_of(api, file_id)
    folder = api.store.folder(entry.folder)
    if entry.purpose != BATCH:
        return file_response(stored_file(folder, entry.name), request.headers)
    try:
        file = StoredFile(
            folder, entry.name, folder.size(entry.name), PurePosixPath(entry.folder).name
        )
    except FileNotFoundError:
        raise Refusal(404, "unknown-file", f"the bytes of {file_id} are gone") from None
    return file_response(file, request.headers)


@router.delete(
    "/{file_id}", response_model=FileDeleted, responses=errors(404), summary="Delete a file"
)
def delete_file(api: State, file_id: ObjectId) -> Response:
    """Deletes a file; its bytes stay while a batch that is not done yet reads them.

    The bytes of a file that a batch left stay with the task's results.
    """
    entry = file_of(api, file_id)
    if not api.ledger.openai.delete_file(entry.file_id):
        raise Refusal(404, "unknown-file", f"there is no file {file_id!a}")
    remove_unneeded(api)
    return reply(FileDeleted(id=entry.file_id))


def _shown(entry: FileEntry) -> FileObject:
    return FileObject(
        id=entry.file_id,
        bytes=entry.bytes,
        created_at=int(entry.created_at.timestamp()),
        filename=entry.filename,
        purpose=cast(Any, entry.purpose),
    )
