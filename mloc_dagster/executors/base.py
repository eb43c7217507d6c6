"""The door for executor authors: implement `TaskExecutor` or `RowExecutor`, register a task type.

An executor turns input rows into output rows. It does not know Dagster, the store, retries or
other shards: rows come in through `ShardInput`, go out through `ShardContext.emit`. Register a
class under the entry-point group `mloc_dagster.task_types` with the task type as its name.

The fleet's workers set the question; ops ask it; in a plain Dagster process nobody has set one
and Dagster's own interrupts do the work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from mloc_dagster.errors import DataError, TaskCancelled
from mloc_dagster.results import InputRow, Journal, OutputRow, Spend, ToolCallDelta, failed_row
from mloc_dagster.schema import RowSpec

_question: ContextVar[Callable[[], bool] | None] = ContextVar("cancel_requested", default=None)


def cancel_requested() -> bool:
    """Returns whether the shard of this thread was asked to stop."""
    question = _question.get()
    return False if question is None else question()


@contextmanager
def cancellable(question: Callable[[], bool]) -> Generator[None]:
    """Lets `cancel_requested` ask `question` in this thread while it is open."""
    token = _question.set(question)
    try:
        yield
    finally:
        _question.reset(token)


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Identifies a loaded model: equal keys may share one copy in memory.

    Attributes:
        engine: The engine's name; `auto` where each machine chooses.
        identity: Everything that changes what is loaded, in a canonical form.
        name: What people call it; no part of the identity.
    """

    engine: str
    identity: str
    name: str = field(default="", compare=False)


def model_key_text(key: ModelKey) -> str:
    """Returns `engine:name@hash`, the same for equal models in every process and on every host."""
    digest = hashlib.sha256(key.identity.encode()).hexdigest()[:16]
    return f"{key.engine}:{key.name}@{digest}" if key.name else f"{key.engine}:{digest}"


def no_files(name: str) -> bytes:
    """Stands for a task without a folder: there is no file."""
    raise FileNotFoundError(name)


@dataclass(frozen=True, slots=True)
class ShardInput:
    """The part of a shard that is still to be computed.

    Attributes:
        task_id: The task.
        index: The shard's place among the task's shards.
        attempt: 1 for the first try.
        seed: The plan's seed, for what is random when the spec gives no seed of its own.
        rows: Missing rows only, in the plan's order; a stream, to be read once.
        count: How many rows `rows` will give.
        open_file: Reads a file of the task's folder, such as an image that its rows name.
    """

    task_id: str
    index: int
    attempt: int
    seed: int
    rows: Iterable[InputRow]
    count: int
    open_file: Callable[[str], bytes] = no_files


@dataclass(frozen=True, slots=True)
class ShardContext:
    """What an executor may do to the outside.

    Attributes:
        emit: Hand over a finished row. Any order; each index exactly once.
        cancelled: Look at this between engine steps; when true, raise `TaskCancelled`.
        log: One line for the task's own log file.
        started: Optional: of the rows drawn from the input, these indexes are computed now, and
            no others. Without it all rows drawn and not emitted count as being computed.
        save: Keeps a file of the executor's own in the task's folder, under that name.
        journal: Keeps what is done of rows that take many steps; None where nothing is kept.
        count: Takes what of the task type's `counts` has happened in the shard by now, earlier
            attempts included as far as is known, as often as that changes, from any thread: it is
            shown.
        spend: Takes what a row that takes many steps has taken by now, under its index, from any
            thread: it counts for the task's budget before the row has ended.
    """

    emit: Callable[[OutputRow], None]
    cancelled: Callable[[], bool]
    log: Callable[[str], None]
    started: Callable[[Sequence[int]], None] = lambda _: None
    journal: Journal | None = None
    save: Callable[[str, bytes], None] = lambda *_: None
    count: Callable[[Mapping[str, int]], None] = lambda _: None
    spend: Callable[[int, Spend], None] = lambda *_: None


class TaskExecutor[SpecT, ModelT](Protocol):
    """Computes shards of one task type.

    Raise `TransientError` for what another attempt may cure and `TerminalError` for what it
    will not; any other exception counts as transient, unless it is what bugs raise (`TypeError`,
    `AttributeError`, …: see `shard_run`). A row that cannot be computed is emitted
    with `error`, not raised.
    """

    def model_key(self, spec: SpecT) -> ModelKey | None:
        """Returns what identifies the model, or None when there is nothing to keep warm."""
        ...

    def load(self, spec: SpecT) -> ModelT:
        """Loads the model; called by the model cache only."""
        ...

    def unload(self, model: ModelT) -> None:
        """Frees the model: after this its memory is really available."""
        ...

    def run(self, shard: ShardInput, spec: SpecT, model: ModelT, context: ShardContext) -> None:
        """Computes every row of `shard`, emitting each as it finishes."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the answer of one interactive request.

    All functions may be called in the thread that asked, between steps of the model: they should
    return at once.

    Attributes:
        text: Takes the number of a choice and its new text, as it is generated, where `stream` is
            set. All pieces of a choice, one after another, are its text. With several rows, the
            choices of a row have the numbers behind those of the rows before it.
        cancelled: Whether the caller hung up: nothing more is computed then.
        stream: Whether text is wanted as it is generated.
        reasoning: Takes in the same way what the model thinks before it answers.
        tool_call: Takes in the same way pieces of the calls of tools.
    """

    text: Callable[[int, str], None]
    cancelled: Callable[[], bool]
    stream: bool = False
    reasoning: Callable[[int, str], None] = lambda *_: None
    tool_call: Callable[[int, ToolCallDelta], None] = lambda *_: None


@runtime_checkable
class AnswersCalls[SpecT, ModelT](Protocol):
    """What a task executor may offer besides: answers at once, while shards run on the same model.

    It is called from any thread, from several at once. The model is leased meanwhile, as for a
    shard.
    """

    def answer(
        self, rows: Sequence[InputRow], spec: SpecT, model: ModelT, caller: Caller
    ) -> Sequence[OutputRow]:
        """Answers the rows of one request now, between what shards ask of the same model.

        Args:
            rows: Each with another `index`.
            spec: What a task with these rows would have.
            model: The loaded model.
            caller: Who waits.

        Returns:
            One row for each, in order; one that cannot be answered has its `error`, and a `fault`
            where the engine broke down.

        Raises:
            TaskCancelled: If the caller hung up.
            TransientError: If the engine is lost.
        """
        ...


@runtime_checkable
class SizesModels[ModelT](Protocol):
    """What a task executor may offer besides: how much memory its models take.

    The model cache counts models of other executors as 0 bytes.
    """

    def model_bytes(self, model: ModelT) -> int:
        """Returns the bytes that a loaded model holds, on its device or in main memory."""
        ...


@runtime_checkable
class ChecksModels[ModelT](Protocol):
    """What a task executor may offer besides: whether a loaded model is still what it was."""

    def is_current(self, model: ModelT, spec: Any) -> bool:
        """Returns whether loading the model of `spec` now would give the same one."""
        ...


@runtime_checkable
class KnowsRevisions[ModelT](Protocol):
    """What a task executor may offer besides: which state of a model it has loaded.

    It is stamped on each row, and a task's rows keep to one of them.
    """

    def revision(self, model: ModelT) -> str:
        """Returns the hub's commit, or a hash of the files; equal ones answer the same."""
        ...


@runtime_checkable
class SleepsModels[ModelT](Protocol):
    """What a task executor may offer besides: models that leave their device and can come back.

    The model cache asks before it unloads a model to make room.
    """

    def asleep_bytes(self, model: ModelT) -> int | None:
        """Returns the bytes of main memory that a model takes asleep; None if it cannot sleep."""
        ...

    def sleep(self, model: ModelT) -> None:
        """Moves a model that can sleep to main memory, and frees its device.

        Raises:
            Exception: If it cannot; it will be unloaded.
        """
        ...

    def wake(self, model: ModelT) -> None:
        """Brings a sleeping model back to its device.

        Raises:
            Exception: If it cannot; it will be unloaded, and loaded anew.
        """
        ...


SECONDS_PER_LOOK = 0.1  # asking whether to stop may cost more than a row


class RowExecutor[SpecT: RowSpec]:
    """Computes rows one after the other, each by itself.

    Args:
        answer: Takes a row and the task's spec; returns the row's output. A `DataError` is the
            row's own error; any other exception ends the attempt.
        engine: What computes rows, with its version; it stands on each of them.
    """

    def __init__(self, answer: Callable[[InputRow, SpecT], str], engine: str) -> None:
        self._answer = answer
        self._engine = engine

    def model_key(self, spec: SpecT) -> ModelKey | None:
        """Returns None: there is no model."""
        return None

    def load(self, spec: SpecT) -> None:
        """Loads nothing."""

    def unload(self, model: None) -> None:
        """Frees nothing."""

    def run(self, shard: ShardInput, spec: SpecT, model: None, context: ShardContext) -> None:
        """Answers every row of a shard.

        Raises:
            TaskCancelled: If the task was asked to stop.
        """
        looked = 0.0
        for done, row in enumerate(shard.rows):
            if time.monotonic() - looked > SECONDS_PER_LOOK:
                if context.cancelled():
                    raise TaskCancelled(f"stopped after {done} rows")
                looked = time.monotonic()
            context.emit(self._output(row, spec))

    def answer(
        self, rows: Sequence[InputRow], spec: SpecT, model: None, caller: Caller
    ) -> Sequence[OutputRow]:
        """Answers the rows of a call, one after the other.

        Raises:
            TaskCancelled: If the caller has gone.
        """
        answered: list[OutputRow] = []
        for choice, row in enumerate(rows):
            if caller.cancelled():
                raise TaskCancelled("the caller has gone")
            answered.append(self._output(row, spec))
            if caller.stream:
                caller.text(choice, answered[-1].output)
        return answered

    def _output(self, row: InputRow, spec: SpecT) -> OutputRow:
        if row.error is not None:
            return failed_row(row, row.error, self._engine)
        began = time.monotonic()
        try:
            output = self._answer(row, spec)
        except DataError as error:
            return failed_row(row, str(error), self._engine)
        seconds = time.monotonic() - began
        return OutputRow(
            index=row.index,
            prompt=row.prompt,
            output=output,
            latency_s=seconds,
            engine=self._engine,
            engine_s=seconds,
            custom_id=row.custom_id,
        )
