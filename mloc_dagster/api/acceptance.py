"""Submissions and their files made durable; those that arrive together share one commit."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from anyio import CapacityLimiter, to_thread
from sqlalchemy.exc import DBAPIError

from mloc_dagster.api.compiled_bodies import CompiledBodies, PreparedBody
from mloc_dagster.api.metrics import Metrics
from mloc_dagster.api.problems import Refusal
from mloc_dagster.api.submission_body import SubmissionBody, Upload
from mloc_dagster.ledger import Accepted, KeyReused, Ledger, Request, Submission
from mloc_dagster.net import UPLOADS_FOLDER, has_content
from mloc_dagster.results import BUFFER_BYTES, Folder, ResultStore, open_store
from mloc_dagster.wire import SubmitReply, SubmittedTask, TaskState


def keep_uploads(store: ResultStore, uploads: Sequence[Upload]) -> dict[str, str]:
    """Stores files as `.uploads/<sha256>/<name>`; what is there already, and sound, stays.

    Returns:
        Their addresses, by the names by which a template may call them: the whole name, and the
        last part of it where only one file has that.
    """
    addresses: dict[str, str] = {}
    for each in uploads:
        folder, name = keep_upload(store, each)
        addresses[each.name] = f"{folder.url}/{name}"
    ends = [PurePosixPath(each.name).name for each in uploads]
    for each, end in zip(uploads, ends, strict=True):
        if ends.count(end) == 1:
            addresses.setdefault(end, addresses[each.name])
    return addresses


def keep_upload(store: ResultStore, upload: Upload) -> tuple[Folder, str]:
    """Stores a file as `.uploads/<sha256>/<name>`, in constant memory; returns where it is."""
    source = upload.file.file
    source.seek(0)
    digest = hashlib.file_digest(cast(Any, source), "sha256").hexdigest()
    name = PurePosixPath(upload.name).name
    folder = store.folder(f"{UPLOADS_FOLDER}/{digest}")
    if not (folder.exists(name) and has_content(folder.open(name), digest)):
        source.seek(0)
        with folder.create(name) as target:
            shutil.copyfileobj(source, target, BUFFER_BYTES)
    return folder, name


_WINDOW_S = 0.005
_MOST_SUBMISSIONS = 256
_MAX_KEY_LENGTH = 200

_LARGE_BYTES = 65_536
"""Of a body that takes a second or more to compile: one at a time, or others would wait for all."""


@dataclass(slots=True)
class _Waiting:
    """The submissions of one request, and who waits for them."""

    submissions: Sequence[Submission]
    done: asyncio.Future[Sequence[Accepted | KeyReused]]

    @property
    def keys(self) -> set[str]:
        return {each.request.key for each in self.submissions if each.request is not None}


class Acceptance:
    """Compiles submissions and hands them to the ledger.

    Args:
        ledger: Where they are durable.
        bodies: Compiles.
        metrics: Counts.
    """

    def __init__(self, ledger: Ledger, bodies: CompiledBodies, metrics: Metrics) -> None:
        self._ledger = ledger
        self._bodies = bodies
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._large = CapacityLimiter(1)

    async def start(self) -> None:
        """Begins to commit."""
        self._task = asyncio.create_task(self._commit_forever())

    async def stop(self) -> None:
        """Commits what waits, and ends."""
        while self._waiting:
            await self._commit(self._next())
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def submit(self, body: SubmissionBody, key: str | None) -> tuple[SubmitReply, bool]:
        """Accepts all documents of a body, or none; they are durable when this returns.

        Args:
            body: What came.
            key: The request's `Idempotency-Key`.

        Returns:
            The answer, and whether it is a new one.

        Raises:
            Refusal: If a document is wrong, or the key came with another body before.
        """
        _check_key(key)
        large = len(body.text) > _LARGE_BYTES
        prepared = await to_thread.run_sync(
            self._prepare, body, limiter=self._large if large else None
        )
        submissions = _submissions(prepared, key)
        waiting = _Waiting(submissions, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        # Whoever leaves meanwhile does not take back what others share a commit with.
        accepted = await asyncio.shield(waiting.done)
        reply = _reply(prepared, submissions, accepted)
        new = any(isinstance(each, Accepted) and each.new for each in accepted)
        if new:
            self._metrics.accepted.inc(reply.count)
        return reply, new

    def _prepare(self, body: SubmissionBody) -> PreparedBody:
        uploads = keep_uploads(open_store(), body.uploads) if body.uploads else {}
        return self._bodies.prepare(body.text, body.name, uploads)

    async def _commit_forever(self) -> None:
        while True:
            await self._arrived.wait()
            if self._count() < _MOST_SUBMISSIONS:
                await asyncio.sleep(_WINDOW_S)
            self._arrived.clear()
            while self._waiting:
                await self._commit(self._next())

    def _count(self) -> int:
        return sum(len(each.submissions) for each in self._waiting)

    def _next(self) -> list[_Waiting]:
        """Takes what fits into a commit; a key stands in it once, and its second use waits."""
        chosen: list[_Waiting] = []
        keys: set[str] = set()
        room = _MOST_SUBMISSIONS
        while self._waiting and (not chosen or len(self._waiting[0].submissions) <= room):
            if keys & self._waiting[0].keys:
                break
            chosen.append(self._waiting.popleft())
            keys |= chosen[-1].keys
            room -= len(chosen[-1].submissions)
        return chosen

    async def _commit(self, chosen: Sequence[_Waiting]) -> None:
        submissions = [each for one in chosen for each in one.submissions]
        self._metrics.commit_tasks.observe(len(submissions))
        try:
            accepted = await asyncio.to_thread(self._ledger.accept, submissions)
        except Exception as error:  # noqa: BLE001 (whoever waits raises it)
            await self._commit_apart(chosen, error)
            return
        start = 0
        for one in chosen:
            end = start + len(one.submissions)
            if not one.done.done():
                one.done.set_result(accepted[start:end])
            start = end

    async def _commit_apart(self, chosen: Sequence[_Waiting], error: Exception) -> None:
        """Finds the one that the database refuses: it fails alone."""
        if isinstance(error, DBAPIError | ValueError) and len(chosen) > 1:
            for one in chosen:
                await self._commit([one])
            return
        for one in chosen:
            if not one.done.done():
                one.done.set_exception(error)


def _check_key(key: str | None) -> None:
    if key is None:
        return
    if not (0 < len(key) <= _MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
        detail = f"Idempotency-Key takes 1 to {_MAX_KEY_LENGTH} printable ASCII characters"
        raise Refusal(422, "invalid-request", detail)


def _submissions(prepared: PreparedBody, key: str | None) -> list[Submission]:
    hashes = "\n".join(each.content_hash for each in prepared.documents)
    content = hashlib.sha256(hashes.encode()).hexdigest()
    return [
        each.submission(
            None if key is None else Request(key=key, place=place, content_hash=content)
        )
        for place, each in enumerate(prepared.documents)
    ]


def _reply(
    prepared: PreparedBody,
    submissions: Sequence[Submission],
    accepted: Sequence[Accepted | KeyReused],
) -> SubmitReply:
    tasks: list[SubmittedTask] = []
    for submission, each in zip(submissions, accepted, strict=True):
        if isinstance(each, KeyReused):
            raise Refusal(409, "key-reused", f"{each}: give another request another key")
        for task in submission.tasks:
            suffix = task.task_id.removeprefix(submission.workflow_id)
            tasks.append(
                SubmittedTask(
                    task_id=each.workflow_id + suffix,
                    workflow_id=each.workflow_id,
                    status=TaskState.WAITING if task.depends_on else TaskState.PENDING,
                    template=submission.template_name,
                    node=task.node,
                    task_type=task.task_type,
                    depends_on=task.depends_on,
                )
            )
    return SubmitReply(count=len(tasks), tasks=tuple(tasks), warnings=prepared.warnings)
