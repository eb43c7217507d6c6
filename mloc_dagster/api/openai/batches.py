"""`/v1/batches`: a file of requests as a task, durable before it is answered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import JsonValue
from starlette.concurrency import run_in_threadpool

from mloc_dagster.api.metrics import TASKS
from mloc_dagster.api.openai.batch_state import BATCH, batch_of, settle_all
from mloc_dagster.api.openai.errors import PREFIX, errors
from mloc_dagster.api.openai.files import (
    After,
    ObjectId,
    Order,
    address_of,
    invalid,
    object_id,
)
from mloc_dagster.api.openai.objects import Batch, BatchCreate, BatchError, BatchPage, window_s
from mloc_dagster.api.parameters import IdempotencyKey, no_other_parameters
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.state import ApiState, State, reply
from mloc_dagster.api.submission_body import SubmissionBody
from mloc_dagster.compile import Document, Position, apply_sets, tree_of
from mloc_dagster.data import BatchFile, scan_batch
from mloc_dagster.errors import DataError, InputError, TemplateError
from mloc_dagster.ledger import BatchEntry, FileEntry, PageOf
from mloc_dagster.schema import canonical_json
from mloc_dagster.tasks import asked_spec, batch_template

router = APIRouter(prefix=f"{PREFIX}/batches", tags=["openai"])

_EMBEDDINGS = "/v1/embeddings"
_LABEL = "openai_batch"
_SETTABLE = ("model", "inference", "pooling", "parallel", "resources", "retries", "reuse")
"""Blocks of the spec that `mloc.set` reaches: what is read and written is the batch's."""


def defects_of(found: BatchFile, endpoint: str, model: str | None = None) -> list[BatchError]:
    """Returns what fails a batch file as a whole.

    Args:
        found: What is in the file.
        endpoint: What the batch was created for.
        model: What answers it; by default what its requests name.
    """
    defects = [
        BatchError(code="invalid_request_line", line=each.line, message=each.message)
        for each in found.defects
    ]
    if found.more_defects:
        defects.append(BatchError(message=f"… and {found.more_defects:,} more lines are wrong"))
    defects.extend(
        BatchError(
            code="mismatched_endpoint",
            line=line,
            message=f"url is {url}, but the batch was created for {endpoint}",
            param="url",
        )
        for url, line in found.first_lines.items()
        if url != endpoint
    )
    if model is not None:
        return defects
    (first, line), (other, other_line) = [*found.models.items(), ("", 0), ("", 0)][:2]
    if not first and not defects:
        message = "no request has a body.model, which says what answers the batch"
        defects.append(BatchError(code="missing_model", message=message, param="body.model"))
    if other:
        message = (
            f"body.model is {other!r}, but {first!r} in line {line}: one model answers a batch"
        )
        defects.append(
            BatchError(
                code="mismatched_model", line=other_line, message=message, param="body.model"
            )
        )
    return defects


@router.post(
    "",
    response_model=Batch,
    responses=errors(408, 409, 413),
    summary="Create a batch",
)
async def create_batch(
    api: State, request: Request, wanted: BatchCreate, idempotency_key: IdempotencyKey = None
) -> Response:
    """Accepts a batch: it is on disk when this answers, and runs as a task.

    A file that is wrong as a whole makes a batch that has failed, with a reason for each line.
    """
    batch_id = object_id("batch_", idempotency_key)
    made_of = hashlib.sha256(canonical_json(wanted.model_dump(mode="json")).encode()).hexdigest()
    entry = await run_in_threadpool(api.ledger.openai.batch, batch_id)
    if entry is None:
        entry = await _accept(api, wanted, batch_id, made_of)
    if entry.request_hash != made_of:
        raise Refusal(409, "key-reused", "the Idempotency-Key came before with another batch")
    request.scope[TASKS] = [entry.task_id] if entry.task_id else []
    return reply(await run_in_threadpool(batch_of, api, entry))


async def _accept(api: ApiState, wanted: BatchCreate, batch_id: str, made_of: str) -> BatchEntry:
    draft = await run_in_threadpool(_draft, api, wanted, batch_id, made_of)
    entry = draft.entry
    if draft.template is not None:
        text = json.dumps(draft.template, ensure_ascii=False).encode()
        try:
            # The same key for the same batch: who was not answered may ask again.
            answer, _ = await api.acceptance.submit(
                SubmissionBody(text, "batch.yaml"), f"{_LABEL} {batch_id}"
            )
            entry = replace(entry, task_id=answer.tasks[0].task_id)
        except Refusal as refusal:
            if refusal.status != 422 or wanted.mloc.set:
                raise
            entry = replace(entry, errors=_plain(_defects_of_template(refusal)))
    return await run_in_threadpool(api.ledger.openai.add_batch, entry)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A batch before it is accepted; without a template it has failed."""

    entry: BatchEntry
    template: dict[str, JsonValue] | None = None


def _draft(api: ApiState, wanted: BatchCreate, batch_id: str, made_of: str) -> _Draft:
    file = api.ledger.openai.file(wanted.input_file_id)
    if file is None:
        raise invalid("input_file_id", f"there is no file {wanted.input_file_id!a}", "unknown-file")
    if file.purpose != BATCH:
        detail = f"{file.file_id} is for {file.purpose!r}; upload the batch with purpose 'batch'"
        raise invalid("input_file_id", detail)
    found, defects = _scan(api, file, wanted)
    named = wanted.mloc.model or next(iter(found.models), None)
    entry = BatchEntry(
        batch_id=batch_id,
        request_hash=made_of,
        input_file_id=file.file_id,
        endpoint=wanted.endpoint,
        completion_window=wanted.completion_window,
        metadata=wanted.metadata,
        model=named,
        requests=found.requests,
        errors=_plain(defects),
        task_id=None,
        created_at=datetime.now(UTC),
    )
    if defects or named is None:
        return _Draft(entry)
    try:
        asked = asked_spec(named, vectors=wanted.endpoint == _EMBEDDINGS)
    except InputError as error:
        unknown = BatchError(code="model_not_found", message=str(error), param="body.model")
        return _Draft(replace(entry, errors=_plain([unknown])))
    template = batch_template(
        address_of(api, file),
        asked,
        labels=_labels(wanted, batch_id),
        slo_s=window_s(wanted.completion_window),
    )
    return _Draft(entry, _with_sets(template, wanted))


def _scan(
    api: ApiState, file: FileEntry, wanted: BatchCreate
) -> tuple[BatchFile, list[BatchError]]:
    url = address_of(api, file)
    try:
        found = scan_batch(url)
    except DataError as error:  # it is damaged, or empty
        message = str(error).removeprefix(f"{url}: ")
        return BatchFile(url), [BatchError(code="invalid_file", message=message)]
    return found, defects_of(found, wanted.endpoint, wanted.mloc.model)


def _labels(wanted: BatchCreate, batch_id: str) -> dict[str, str]:
    """Returns what lists of tasks find the batch by."""
    given = (wanted.metadata or {}).items()
    shown = {key: value for key, value in given if (key + value).isprintable()}
    return {**shown, _LABEL: batch_id}


def _with_sets(template: dict[str, JsonValue], wanted: BatchCreate) -> dict[str, JsonValue]:
    for path in wanted.mloc.set:
        block = path.removeprefix("spec.").partition(".")[0]
        if not path.startswith("spec.") or block not in _SETTABLE:
            allowed = ", ".join(f"spec.{each}" for each in _SETTABLE)
            raise invalid("mloc.set", f"{path[:100]!a} cannot be set in a batch, but {allowed} can")
    if not wanted.mloc.set:
        return template
    document = Document("batch", tree_of(template, Position("batch")))
    try:
        return apply_sets(document, dict(wanted.mloc.set)).root.mapping()
    except TemplateError as error:
        raise invalid("mloc.set", str(error)) from None


def _defects_of_template(refusal: Refusal) -> list[BatchError]:
    code = refusal.kind.replace("-", "_")
    found = [each for each in refusal.errors if each.severity == "error"]
    if not found:
        return [BatchError(code=code, message=refusal.detail)]
    return [BatchError(code=code, message=each.message, param=each.path or None) for each in found]


def _plain(defects: Sequence[BatchError]) -> list[dict[str, JsonValue]]:
    return [each.model_dump(mode="json") for each in defects]


@router.get(
    "",
    response_model=BatchPage,
    responses=errors(),
    dependencies=[Depends(no_other_parameters("after", "limit", "order"))],
    summary="List batches",
)
def list_batches(
    api: State,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> Response:
    """Returns batches."""
    settle_all(api)
    entries, more = api.ledger.openai.batches(PageOf(limit, after, ascending=order == "asc"))
    page = BatchPage(
        data=tuple(batch_of(api, each) for each in entries),
        first_id=entries[0].batch_id if entries else None,
        last_id=entries[-1].batch_id if entries else None,
        has_more=more,
    )
    return reply(page)


@router.get("/{batch_id}", response_model=Batch, responses=errors(404), summary="Show a batch")
def show_batch(api: State, batch_id: ObjectId) -> Response:
    """Returns how far a batch is."""
    return reply(batch_of(api, _known(api, batch_id)))


@router.post(
    "/{batch_id}/cancel", response_model=Batch, responses=errors(404, 409), summary="Stop a batch"
)
def cancel_batch(api: State, batch_id: ObjectId) -> Response:
    """Stops a batch; the answers that are there become its output file."""
    entry = _known(api, batch_id)
    batch = batch_of(api, entry)
    if batch.status in ("completed", "failed", "expired"):
        raise Refusal(409, "has-ended", f"{batch_id} has ended already ({batch.status})")
    if entry.task_id is not None and batch.status != "cancelled":
        api.ledger.openai.cancelling(batch_id)
        api.ledger.cancel([entry.task_id])
    return reply(batch_of(api, _known(api, batch_id)))


def _known(api: ApiState, batch_id: str) -> BatchEntry:
    found = api.ledger.openai.batch(batch_id)
    if found is None:
        raise Refusal(404, "unknown-batch", f"there is no batch {batch_id!a}")
    return found
