"""Running one shard, whatever its task type and wherever it runs; its log file."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict

from mloc_dagster.data import read_places
from mloc_dagster.errors import (
    DamagedFileError,
    MlocError,
    TaskCancelled,
    TerminalError,
    TransientError,
)
from mloc_dagster.executors.base import KnowsRevisions, ShardContext, ShardInput
from mloc_dagster.executors.budget import NoPurse, Purse, unaffordable_row
from mloc_dagster.executors.crash_watch import CrashWatch, NoWatch, Run
from mloc_dagster.executors.energy import find_meter, gpu_count, measuring
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.executors.row_gate import RowGate
from mloc_dagster.executors.task_start import task_executor
from mloc_dagster.planning import Plan, Shard
from mloc_dagster.results import (
    Folder,
    InputRow,
    Journal,
    OutputRow,
    Part,
    Rates,
    ShardWriter,
    finished_rows,
    keep_to_model,
)
from mloc_dagster.schema import ModelSpec, RowSpec
from mloc_dagster.settings import settings

MAX_LINES = 10_000  # of one attempt: a log that grows with the rows would be a second result


def shard_log_name(shard: Shard) -> str:
    """Returns where a shard's log lies below the task's folder."""
    return f"logs/shard-{shard.key}.log"


class ShardLog:
    """Timestamped lines of one attempt, written behind those of earlier attempts.

    Object stores cannot append, so lines are held back and the file is rewritten by `save`.

    Args:
        folder: The task's folder.
        shard: Whose log it is.
    """

    def __init__(self, folder: Folder, shard: Shard) -> None:
        self._folder = folder
        self._name = shard_log_name(shard)
        self._earlier = folder.read_bytes(self._name) if folder.exists(self._name) else b""
        self._lines: list[str] = []
        self._lock = threading.Lock()

    def line(self, text: str) -> None:
        """Adds one line; line breaks inside become spaces."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        with self._lock:
            if len(self._lines) < MAX_LINES:
                self._lines.append(f"{now} {' '.join(text.splitlines())}\n")

    def save(self) -> None:
        """Writes the file."""
        with self._lock:
            text = "".join(self._lines)
        self._folder.write_bytes(self._name, self._earlier + text.encode())


# What another attempt would only run into again.
_BUGS = (ImportError, NameError, AttributeError, TypeError, NotImplementedError, AssertionError)


class ShardReport(BaseModel):
    """What one attempt at a shard did.

    Attributes:
        task_id: The task.
        shard: The shard's place among the task's shards.
        attempt: From 1.
        rows_computed: Rows this attempt wrote, errors included.
        rows_resumed: Rows that earlier attempts had finished.
        errors: Rows this attempt wrote with an error.
        prompt_tokens: Tokens read for the computed rows.
        completion_tokens: Tokens written for them.
        seconds: Wall time of the attempt, loading included.
        load_seconds: The part of it spent waiting for the model.
        worker: Who did it: `host:pid`.
        engine: What computed the rows; empty when none was missing.
        started_at: When the attempt began.
        finished_at: When its last row was on the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    shard: int
    attempt: int
    rows_computed: int
    rows_resumed: int
    errors: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    load_seconds: float
    worker: str
    engine: str
    started_at: AwareDatetime
    finished_at: AwareDatetime


def worker_name() -> str:
    """Returns who this process is: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_shard(
    folder: Folder,
    task_id: str,
    spec: RowSpec,
    plan: Plan,
    shard: Shard,
    *,
    attempt: int,
    cache: ModelCache,
    cancelled: Callable[[], bool],
    on_rows: Callable[[OutputRow], None] | None = None,
    on_resumed: Callable[[int], None] | None = None,
    on_damaged: Callable[[str], None] | None = None,
    on_counts: Callable[[Mapping[str, int]], None] = lambda _: None,
    retry_errors: bool = False,
    accept_changed_model: bool = False,
) -> ShardReport:
    """Computes the rows of a shard that no earlier attempt has finished.

    Rows reach the store as they finish, and stay there whatever happens next.

    Args:
        folder: The task's folder, holding the spooled input.
        task_id: The task.
        spec: What to compute.
        plan: The task's plan.
        shard: Which of the plan's shards.
        attempt: 1 for the run's first try. What is stamped on rows also counts the attempts of
            earlier runs that left rows.
        cache: Lends the model.
        cancelled: Asked between steps; true ends the attempt.
        on_rows: Called with each finished row, in the order of finishing.
        on_resumed: Called once, before the first row, with how many rows were there already.
        on_damaged: Called with a warning for each part file that is not what was written; it is
            deleted, and its rows are computed again.
        on_counts: Called with what of the task type's `counts` has happened; see `ShardContext`.
        retry_errors: Whether rows that ended with an error are computed again.
        accept_changed_model: Whether another model may go on than the one that began.

    Raises:
        InputError: If the model has changed since the task was begun.
        TransientError: If another attempt may help; most foreign exceptions arrive as this.
        TerminalError: If it cannot, the executor broke the protocol, or it has a bug.
        TaskCancelled: If `cancelled` said so.
    """
    started_at, started = datetime.now(UTC), time.monotonic()
    log = ShardLog(folder, shard)
    worker = worker_name()
    finished = finished_rows(
        folder, shard, retry_errors=retry_errors, on_damaged=_dropping(folder, log, on_damaged)
    )
    attempt = max(attempt, finished.attempts + 1)
    if on_resumed is not None:
        on_resumed(finished.count)
    gate = RowGate(
        shard,
        finished,
        planned=bool(plan.windows),
        task_type=spec.task_type,
        worker=worker,
        attempt=attempt,
        log=log.line,
    )

    purse = _purse(folder, plan, shard, spec, log, started_at)
    work = _Attempt(
        *(folder, task_id, spec, plan, shard, attempt, started_at, started),
        *(gate, purse, shard.rows - finished.count, log, cancelled, on_rows, on_counts),
        accept_changed_model,
    )
    log.line(
        f"{worker} starts attempt {attempt} at shard {shard.key} of {shard.total}: "
        f"rows {shard.start} to {shard.stop - 1}, of which {finished.count} are there"
    )
    try:
        load_seconds = work.run(cache)
        log.line(
            f"done: rows {gate.computed}, errors {gate.errors}, tokens {gate.completion_tokens}; "
            f"{time.monotonic() - started:.2f} s of which {load_seconds:.2f} s for the model"
        )
    except TaskCancelled as stop:
        log.line(f"cancelled: {stop}; {gate.computed} rows more than before are kept")
        raise
    except MlocError as error:
        log.line(f"failed: {type(error).__name__}: {error}")
        raise
    except Exception as error:
        log.line(f"failed: {type(error).__name__}: {error}")
        kind = TerminalError if isinstance(error, _BUGS) else TransientError
        raise kind(
            f"shard {shard.key} of task {task_id} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        log.save()
    seconds = time.monotonic() - started
    return ShardReport(
        task_id=task_id,
        shard=shard.index,
        attempt=attempt,
        rows_computed=gate.computed,
        rows_resumed=finished.count,
        errors=gate.errors,
        prompt_tokens=gate.prompt_tokens,
        completion_tokens=gate.completion_tokens,
        seconds=seconds,
        load_seconds=load_seconds,
        worker=worker,
        engine=gate.engine,
        started_at=started_at,
        finished_at=started_at + timedelta(seconds=seconds),  # the time of day may have jumped
    )


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One attempt at the rows of a shard that are missing; the fields are those of `run_shard`."""

    folder: Folder
    task_id: str
    spec: RowSpec
    plan: Plan
    shard: Shard
    number: int
    began: datetime
    began_s: float
    gate: RowGate
    purse: Purse | NoPurse
    missing: int
    log: ShardLog
    cancelled: Callable[[], bool]
    on_rows: Callable[[OutputRow], None] | None
    on_counts: Callable[[Mapping[str, int]], None]
    accept_changed_model: bool

    def run(self, cache: ModelCache) -> float:
        """Computes what is missing, as far as the budget goes; returns the seconds of loading."""
        load_seconds = 0.0
        with self.purse:
            if self.missing:
                watched = isinstance(self.spec, ModelSpec) and self.spec.suspects_rows
                watch = CrashWatch(self.folder, self.shard, self.log.line) if watched else NoWatch()
                with watch:
                    load_seconds = self._compute(watch, cache)
                self._leave_out()
                self.gate.check_complete()
        return load_seconds

    def _compute(self, watch: CrashWatch | NoWatch, cache: ModelCache) -> float:
        if self.cancelled():
            raise TaskCancelled("stopped before the first row")
        if self.purse.reached():
            return 0.0
        executor = task_executor(self.spec.task_type)
        asked = time.monotonic()
        with cache.lease(executor, self.spec) as model:
            load_seconds = time.monotonic() - asked
            revision = _revision(executor, model)
            keep_to_model(self.folder, revision, accept_changed=self.accept_changed_model)
            with (
                self._open_writer() as writer,
                _open_journal(self.folder, self.shard, self.number) as journal,
            ):
                write = measuring(writer.write, model, find_meter)
                write = _counting_gpus(write, self.spec, model)
                emit = self.gate.emit_to(write, self._hear, revision)
                context = ShardContext(
                    emit,
                    self._to_stop,
                    self.log.line,
                    journal=journal,
                    save=self.folder.write_bytes,
                    count=self.on_counts,
                    spend=self.purse.open,
                )
                runs = watch.runs(self._read, self.gate.watch, self.missing, context)
                try:
                    self._answer(executor, model, runs)
                except TaskCancelled:
                    if not self.purse.reached() or self.cancelled():
                        raise
        return load_seconds

    def _answer(self, executor: Any, model: object, runs: Iterable[Run]) -> None:
        for rows, count, context in runs:
            part = ShardInput(
                self.task_id,
                self.shard.index,
                self.number,
                self.plan.seed,
                self.purse.rows(rows),
                count,
                self.folder.read_bytes,
            )
            executor.run(part, self.spec, model, context)

    def _leave_out(self) -> None:
        """Says of the rows that are not there that the budget was spent."""
        reason = self.purse.reached()
        if not reason or self.gate.complete:
            return
        left = 0
        with self._open_writer() as writer:
            emit = self.gate.emit_to(writer.write, self._hear)
            for row in self.gate.watch(self._read()):
                emit(unaffordable_row(row, reason, self.purse.taken(row.index)))
                left += 1
        self.log.line(f"{reason}: {left} rows are left out")

    def _to_stop(self) -> bool:
        return bool(self.purse.reached()) or self.cancelled()

    def _hear(self, row: OutputRow) -> None:
        self.purse.add(row)
        if self.on_rows is not None:
            self.on_rows(row)

    def _read(self) -> Iterator[tuple[int, InputRow]]:
        there = self.gate.places()
        shard = self.shard
        return read_places(self.folder, self.plan, shard.start, shard.stop, skip=there)

    def _open_writer(self) -> ShardWriter:
        known = settings()
        return ShardWriter(
            self.folder,
            self.shard,
            self.number,
            flush_rows=known.flush_rows,
            flush_interval_s=known.flush_interval_s,
            began=self.began,
            began_s=self.began_s,
        )


def _dropping(
    folder: Folder, log: ShardLog, warn: Callable[[str], None] | None
) -> Callable[[Part, DamagedFileError], None]:
    def drop(part: Part, _: DamagedFileError) -> None:
        folder.delete(part.name)
        warning = (
            f"{folder.url}/{part.name} was damaged: rows {part.first} to {part.last} in it are "
            "computed again"
        )
        log.line(warning)
        if warn is not None:
            warn(warning)

    return drop


def _revision(executor: object, model: object) -> str:
    """Returns which state of the model is loaded; empty where the executor cannot tell."""
    return executor.revision(model) if isinstance(executor, KnowsRevisions) else ""


def _counting_gpus(
    write: Callable[[OutputRow], None], spec: RowSpec, model: object
) -> Callable[[OutputRow], None]:
    """Returns a `write` that stamps each row with its GPU seconds; the same one on a CPU.

    What the model really runs on counts. An executor that does not say where its model is has
    what the template asks for.
    """
    device = getattr(model, "device", None)
    if device is None:
        gpus = 0 if spec.enforce_cpu else spec.resources.hardware.gpu.count
    else:
        gpus = gpu_count(str(device))
    if not gpus:
        return write
    return lambda row: write(msgspec.structs.replace(row, gpu_s=row.engine_s * gpus))


def _purse(
    folder: Folder, plan: Plan, shard: Shard, spec: RowSpec, log: ShardLog, began: datetime
) -> Purse | NoPurse:
    if not spec.budget.given:
        return NoPurse()
    rates = Rates.of(spec.resources)
    began_s = began.timestamp()
    return Purse(folder, plan, shard, spec.budget, rates, began_s=began_s, log=log.line)


def _open_journal(folder: Folder, shard: Shard, attempt: int) -> Journal:
    known = settings()
    return Journal(folder, shard, attempt, most=known.flush_rows, interval_s=known.flush_interval_s)
