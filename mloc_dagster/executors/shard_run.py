"""Running one shard, whatever its task type and wherever it runs; its log file."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

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
from mloc_dagster.executors.crash_watch import CrashWatch, NoWatch
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
    missing = shard.rows - finished.count
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

    def read() -> Iterator[tuple[int, InputRow]]:
        return read_places(folder, plan, shard.start, shard.stop, skip=finished)

    def compute(watch: CrashWatch | NoWatch) -> float:
        if cancelled():
            raise TaskCancelled("stopped before the first row")
        executor = task_executor(spec.task_type)
        asked = time.monotonic()
        with cache.lease(executor, spec) as model:
            load_seconds = time.monotonic() - asked
            revision = _revision(executor, model)
            keep_to_model(folder, revision, accept_changed=accept_changed_model)
            with (
                _open_writer(folder, shard, attempt, started_at) as writer,
                _open_journal(folder, shard, attempt) as journal,
            ):
                write = _counting_gpus(measuring(writer.write, model, find_meter), spec, model)
                emit = gate.emit_to(write, on_rows, revision)
                context = ShardContext(
                    emit, cancelled, log.line, journal=journal, save=folder.write_bytes
                )
                for rows, count, run in watch.runs(read, gate.watch, missing, context):
                    part = ShardInput(
                        task_id, shard.index, attempt, plan.seed, rows, count, folder.read_bytes
                    )
                    executor.run(part, spec, model, run)
        gate.check_complete()
        return load_seconds

    log.line(
        f"{worker} starts attempt {attempt} at shard {shard.key} of {shard.total}: "
        f"rows {shard.start} to {shard.stop - 1}, of which {finished.count} are there"
    )
    try:
        load_seconds = 0.0
        if missing:
            watched = isinstance(spec, ModelSpec) and spec.suspects_rows
            with CrashWatch(folder, shard, log.line) if watched else NoWatch() as watch:
                load_seconds = compute(watch)
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


def _open_journal(folder: Folder, shard: Shard, attempt: int) -> Journal:
    known = settings()
    return Journal(folder, shard, attempt, most=known.flush_rows, interval_s=known.flush_interval_s)


def _open_writer(folder: Folder, shard: Shard, attempt: int, began: datetime) -> ShardWriter:
    known = settings()
    return ShardWriter(
        folder,
        shard,
        attempt,
        flush_rows=known.flush_rows,
        flush_interval_s=known.flush_interval_s,
        began=began,
    )
