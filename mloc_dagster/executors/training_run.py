"""One attempt at a training, as the worker sees it: what it hands over, hears, and keeps."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

import psutil

from mloc_dagster import errors
from mloc_dagster.data.training_rows import EVALUATION_ROWS_NAME, TRAINING_ROWS_NAME
from mloc_dagster.errors import MlocError, TransientError
from mloc_dagster.executors.shard_log import ShardLog
from mloc_dagster.executors.shard_run import worker_name
from mloc_dagster.executors.training.job import TrainingJob
from mloc_dagster.executors.training.messages import (
    Evaluated,
    Failed,
    Finished,
    LogLine,
    Message,
    Progress,
    Saved,
)
from mloc_dagster.executors.training.packages import check_packages
from mloc_dagster.executors.training.processes import TrainingProcesses
from mloc_dagster.executors.training.shelf import Shelf
from mloc_dagster.net.reach import current_reach
from mloc_dagster.results.training_summary import BEFORE_NAME
from mloc_dagster.schema.output import CHECKPOINTS_NAME
from mloc_dagster.schema.training_options import weights_only
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_dagster.planning.shards import Shard
    from mloc_dagster.results.store import Folder
    from mloc_dagster.schema.task import TrainingSpec

OUTPUT_NAME = "logs/training.out"


@dataclass(slots=True)
class Attempt:
    """What became of an attempt.

    Attributes:
        finished: What the training said at its end.
        before: What the model was worth before the first attempt.
        after: What it was worth in the end.
        resumed_step: The step of the checkpoint that it went on from; 0 for none.
        seconds: Wall time.
    """

    started_at: datetime
    finished: Finished | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    resumed_step: int = 0
    seconds: float = 0.0
    steps: list[Progress] = field(default_factory=list)


def run_training(
    folder: Folder,
    task_id: str,
    spec: TrainingSpec,
    shard: Shard,
    *,
    attempt: int,
    ranks: int,
    start_from: Path | None,
    cancelled: Callable[[], bool],
    on_progress: Callable[[Progress], None],
) -> Attempt:
    """Trains in processes of its own, from the newest checkpoint that is whole.

    Checkpoints are on the store as soon as they are complete, the final weights at the end.

    Args:
        folder: The task's folder, holding the rows.
        task_id: The task.
        spec: What to do.
        shard: The task's only shard.
        attempt: 1 for the first try.
        ranks: How many processes train together.
        start_from: Weights to start from instead of the model's own.
        cancelled: Asked a few times a second; true ends the attempt.
        on_progress: Hears of each report.

    Raises:
        TransientError: If another attempt may help.
        TerminalError: If it cannot.
        TaskCancelled: If `cancelled` said so.
    """
    log = ShardLog(folder, shard)
    began = time.monotonic()
    done = Attempt(datetime.now(UTC), before=_measured_before(folder))
    log.line(f"{worker_name()} starts attempt {attempt} at the training")
    try:
        check_packages(spec)
        with _scratch(task_id, attempt) as scratch:
            shelf = Shelf(folder, scratch, keep=spec.training.save_total_limit, log=log.line)
            # Without its optimiser a training would go on as another one, and nothing would show.
            resume_from = None if weights_only(spec) else shelf.fetch_newest()
            if resume_from is not None:
                done.resumed_step = int(resume_from.name.rpartition("-")[2])
                log.line(f"goes on from step {done.resumed_step}")
            job = TrainingJob(
                task_id=task_id,
                spec=spec,  # type: ignore[arg-type]  one of the union that the field is
                folder=scratch,
                rows=_fetched(folder, TRAINING_ROWS_NAME, scratch),
                eval_rows=_fetched(folder, EVALUATION_ROWS_NAME, scratch)
                if spec.evaluation
                else None,
                start_from=start_from,
                resume_from=resume_from,
                origin=current_reach().origin,
                before=done.before,
            )
            hear = _Hearing(folder, done, shelf, log.line, on_progress)
            with TrainingProcesses(
                job.write(),
                ranks=ranks,
                output=scratch / "training.out",
                silence_s=settings().stall_timeout_s,
            ) as processes:
                try:
                    for message in processes.messages(cancelled):
                        hear.take(message)
                finally:
                    shelf.keep_file(scratch / "training.out", OUTPUT_NAME)
            if done.finished is None:
                raise TransientError("the training ended without a word")
            shelf.keep_folder(scratch / "logs", "logs")
            if done.finished.final:
                shelf.keep_folder(scratch / done.finished.final, done.finished.final)
    except MlocError as error:
        log.line(f"ended: {type(error).__name__}: {error}")
        raise
    finally:
        done.seconds = time.monotonic() - began
        log.save()
    return done


class _Hearing:
    """Does what the messages of a training ask for."""

    def __init__(
        self,
        folder: Folder,
        attempt: Attempt,
        shelf: Shelf,
        log: Callable[[str], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._shelf = shelf
        self._log = log
        self._on_progress = on_progress

    def take(self, message: Message) -> None:
        match message:
            case Progress():
                self._on_progress(message)
            case LogLine():
                self._log(message.text)
            case Saved():
                self._shelf.put(Path(message.path))
                self._log(f"checkpoint of step {message.step}")
            case Evaluated():
                self._evaluated(message)
            case Finished():
                self._attempt.finished = message
            case Failed():
                kind = getattr(errors, message.error, TransientError)
                raise (kind if issubclass(kind, MlocError) else TransientError)(message.message)
            case _:
                assert_never(message)

    def _evaluated(self, message: Evaluated) -> None:
        shown = ", ".join(f"{name} {value:.4g}" for name, value in message.metrics.items())
        self._log(f"{message.when} the training: {shown}")
        if message.when == "before":
            self._attempt.before = message.metrics
            self._folder.write_bytes(BEFORE_NAME, json.dumps(message.metrics).encode())
        else:
            self._attempt.after = message.metrics


def _measured_before(folder: Folder) -> dict[str, float] | None:
    if not folder.exists(BEFORE_NAME):
        return None
    found: Mapping[str, float] = json.loads(folder.read_bytes(BEFORE_NAME))
    return dict(found)


def _fetched(folder: Folder, name: str, scratch: Path) -> Path:
    target = scratch / Path(name).name
    with folder.open(name) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy)
    return target


@contextmanager
def _scratch(task_id: str, attempt: int) -> Iterator[Path]:
    """Lends a folder of this attempt alone: another one may run where this one is thought dead."""
    root = (settings().home / "training").absolute()
    _sweep(root)
    scratch = root / f"{task_id}-{attempt}@{socket.gethostname()}:{os.getpid()}"
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / CHECKPOINTS_NAME).mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Deletes what workers of this machine left that were killed."""
    for left in root.glob(f"*@{socket.gethostname()}:*"):
        pid = left.name.rpartition(":")[2]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
