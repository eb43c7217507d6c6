"""Calls on their way: which worker answers, and what becomes of one whose worker is lost."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache, partial

from anyio import CancelScope, CapacityLimiter, to_thread
from pydantic import JsonValue

from mloc_dagster.api.compiled_bodies import CompiledBodies
from mloc_dagster.api.fleet_access import FleetAccess
from mloc_dagster.api.problems import Refusal
from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import MlocError, UnknownNameError
from mloc_dagster.executors import InputRow, model_key_text, task_executor
from mloc_dagster.fleet import (
    AnswerPiece,
    Call,
    FailurePiece,
    Piece,
    Requirements,
    RowsPiece,
    SignOfLife,
    misfit,
    requirements_of,
    suited_workers,
)
from mloc_dagster.schema import RowSpec
from mloc_dagster.tasks import asked_template

_LOOK_S = 1.0
_SILENCE_S = 10.0
"""A worker that says nothing for so long is lost: each says something every second."""

_MOST_WORKERS = 3
"""That a call is given to, one after the other, as long as none has answered anything."""

_RETRY_AFTER_S = "2"


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that calls ask.

    Attributes:
        document: The template that workers compile.
        spec: Its task.
        model_key: By which workers say that they have it loaded.
        requirements: What it needs of a worker.
    """

    document: str
    spec: RowSpec
    model_key: str
    requirements: Requirements


@lru_cache(256)
def _compiled(document: str) -> Asked:
    spec = compile_mapping(json.loads(document)).tasks[0].task.spec
    if not isinstance(spec, RowSpec):
        raise TypeError(f"{spec.task_type} answers no rows")
    key = task_executor(spec.task_type).model_key(spec)
    return Asked(
        document,
        spec,
        "" if key is None else model_key_text(key),
        requirements_of(spec.resources.hardware, enforce_cpu=spec.enforce_cpu),
    )


@dataclass(slots=True)
class CallRouter:
    """Gives calls to workers and follows their answers.

    Attributes:
        fleet: The workers.
        bodies: Checks what the operator allows.
        most: How many calls at a time.
    """

    fleet: FleetAccess
    bodies: CompiledBodies
    most: int
    _threads: CapacityLimiter = field(init=False)
    _open: Counter[str] = field(default_factory=Counter[str])

    def __post_init__(self) -> None:
        self._threads = CapacityLimiter(self.most)

    def model(self, name: str, *, vectors: bool = False) -> Asked:
        """Returns the model that a request names.

        Raises:
            Refusal: 404, if there is none; 400, if it cannot be asked this, or may not be.
        """
        try:
            template = asked_template(name, vectors=vectors)
        except UnknownNameError as error:
            raise Refusal(404, "model-not-found", str(error)) from error
        except MlocError as error:
            raise Refusal(400, "invalid-model", str(error)) from error
        return self.asked(template, name)

    def asked(self, template: Mapping[str, JsonValue], name: str) -> Asked:
        """Returns what calls ask that a task of a template answers.

        Args:
            template: It has one task.
            name: What findings call it.

        Raises:
            Refusal: If it may not be asked; carries every finding.
        """
        document = json.dumps(template)
        self.bodies.prepare(document.encode(), name, {})
        return _compiled(document)

    async def answer(
        self, model: Asked, rows: Sequence[InputRow], *, stream: bool
    ) -> AsyncGenerator[AnswerPiece | RowsPiece]:
        """Yields pieces as they are generated, if that is wanted, and the answered rows last.

        A worker that is lost, or cannot answer now, is replaced by another one while nothing of
        the answer is out. Closing the generator ends the call.

        Raises:
            Refusal: If no worker can answer, or the one that had begun is lost.
        """
        if sum(self._open.values()) >= self.most:
            detail = f"{self.most} calls are open already (MLOC_API_MAX_CALLS)"
            raise Refusal(429, "too-many-calls", detail, headers={"Retry-After": _RETRY_AFTER_S})
        tried: list[str] = []
        why = ""
        while len(tried) < _MOST_WORKERS:
            worker_id = await self._in_thread(self._choose, model, tried, why)
            tried.append(worker_id)
            begun = False
            self._open[worker_id] += 1
            call = Call(uuid.uuid4().hex, model.document, list(rows), stream)
            try:
                async with aclosing(self._follow(worker_id, call)) as pieces:
                    async for piece in pieces:
                        if isinstance(piece, FailurePiece):
                            why = piece.message
                            if begun or not piece.retry:
                                raise _failed(piece)
                            break
                        yield piece
                        begun = True
                        if isinstance(piece, RowsPiece):
                            return
            finally:
                self._open[worker_id] -= 1
        raise _failed(FailurePiece(why, retry=True))

    async def _follow(
        self, worker_id: str, call: Call
    ) -> AsyncGenerator[AnswerPiece | RowsPiece | FailurePiece]:
        engine = self.fleet.engine()
        heard = time.monotonic()
        await self._in_thread(engine.send_call, worker_id, call)
        try:
            while True:
                pieces: Sequence[Piece] = await self._in_thread(
                    engine.take_pieces, call.call_id, _LOOK_S
                )
                if pieces:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENCE_S:
                    yield FailurePiece(f"the worker {worker_id} does not answer", retry=True)
                    return
                for each in pieces:
                    if not isinstance(each, SignOfLife):
                        yield each
        finally:
            with CancelScope(shield=True):  # also when the client has left
                await self._in_thread(engine.hang_up, call.call_id)

    def _choose(self, model: Asked, tried: Sequence[str], why: str) -> str:
        workers = self.fleet.workers()
        suited = suited_workers(workers, model.model_key, model.requirements, self._open)
        chosen = next((each for each in suited if each not in tried), None)
        if chosen is not None:
            return chosen
        misfits = {misfit(model.requirements, each.hardware): each for each in workers}
        why = why or "; ".join(filter(None, misfits)) or "none is there (`mloc workers`)"
        detail = f"no worker can answer now: {why}"
        raise Refusal(503, "no-worker", detail, headers={"Retry-After": _RETRY_AFTER_S})

    async def _in_thread[**P, T](
        self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        return await to_thread.run_sync(partial(function, *args, **kwargs), limiter=self._threads)


def _failed(piece: FailurePiece) -> Refusal:
    if piece.retry:
        headers = {"Retry-After": _RETRY_AFTER_S}
        return Refusal(503, "not-answered", piece.message, headers=headers)
    return Refusal(400, "invalid-input", piece.message)
