"""A training task on its worker: what it needs to start, one attempt, its end."""

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
from mloc_dagster.data import EVALUATION_ROWS_NAME, TRAINING_ROWS_NAME
from mloc_dagster.errors import MlocError, TerminalError, TransientError
from mloc_dagster.executors.energy import gpu_count
from mloc_dagster.executors.model_cache import ModelCache
from mloc_dagster.executors.shard_run import ShardLog, worker_name
from mloc_dagster.executors.task_start import OpenTask, bad_row_count
from mloc_dagster.executors.training.checkpoints import TrainingFolder
from mloc_dagster.executors.training.harness import check_packages
from mloc_dagster.executors.training.messages import (
    LOGS_NAME,
    Evaluated,
    Failed,
    Finished,
    LogLine,
    Message,
    Progress,
    Saved,
    TrainingJob,
)
from mloc_dagster.executors.training.processes import TrainingProcesses
from mloc_dagster.net import current_reach
from mloc_dagster.results import BEFORE_NAME, ResultStore, TrainingSummary, write_training
from mloc_dagster.schema import CHECKPOINTS_NAME, Evaluation, TrainingSpec, parse_gate, weights_only
from mloc_dagster.settings import settings
from mloc_dagster.tools import check_tools
from mloc_dagster.tracking import TrackedRun

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mloc_dagster.planning import Shard
    from mloc_dagster.results import Folder


def make_room(spec: TrainingSpec, cache: ModelCache, log: Callable[[str], None]) -> None:
    """Unloads the worker's warm models where the training needs their memory.

    On GPUs it always does: an engine takes what there is. On a CPU it does when the training's
    estimate does not fit into what is free.

    Args:
        spec: What is trained.
        cache: The worker's models.
        log: Takes a line if models are unloaded.
    """
    if not cache.keys():
        return
    on_gpu = not spec.enforce_cpu and spec.resources.hardware.gpu.count > 0
    if not on_gpu:
        import psutil

        from mloc_dagster.executors.training.memory_estimate import estimate_of

        needed = estimate_of(spec)
        if needed is None or needed.total_bytes < psutil.virtual_memory().available:
            return
    log(f"unloads {len(cache.keys())} warm models: the training needs their memory")
    cache.clear()


def process_count(spec: TrainingSpec) -> int:
    """Returns how many processes train together: those asked for, else one for each GPU.

    PPO is one process, whose rollouts and updates take turns.
    """
    if spec.method.single_process:
        return 1
    if spec.training.num_processes is not None:
        return spec.training.num_processes
    if spec.enforce_cpu or spec.resources.hardware.gpu.count < 2:
        return 1
    return min(spec.resources.hardware.gpu.count, max(1, gpu_count("cuda")))


def weights_of(spec: TrainingSpec, store: ResultStore) -> Path | None:
    """Returns the folder of the weights that `checkpoint.load` names; None without one.

    Raises:
        InputError: If there are no such weights.
        TransientError: If they cannot be fetched now.
    """
    load = None if spec.checkpoint is None else spec.checkpoint.load
    if load is None:
        return None
    from mloc_dagster.executors.training.weights import locate_weights

    return locate_weights(load, store, settings().home / "weights")


OUTPUT_NAME = f"{LOGS_NAME}/training.out"


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
    tracked: TrackedRun | None = None,
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
        tracked: What trackers are told of the task; by default its id.

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
        check_tools(spec.training.tools)
        with _scratch(task_id, attempt) as scratch:
            kept = TrainingFolder(
                folder, scratch, keep=spec.training.save_total_limit, log=log.line
            )
            # Without its optimiser a training would go on as another one, and nothing would show.
            resume_from = None if weights_only(spec) else kept.fetch_newest()
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
                tracked=tracked or TrackedRun(task_id=task_id, name=task_id),
            )
            handler = _MessageHandler(folder, done, kept, job.logs, log.line, on_progress)
            with TrainingProcesses(
                job.write(),
                ranks=ranks,
                output=scratch / "training.out",
                silence_s=settings().stall_timeout_s,
            ) as processes:
                try:
                    for message in processes.messages(cancelled):
                        handler.take(message)
                finally:
                    kept.keep_file(scratch / "training.out", OUTPUT_NAME)
                    kept.keep_folder(job.logs, LOGS_NAME)
            if done.finished is None:
                raise TransientError("the training ended without a word")
            if done.finished.final:
                kept.keep_folder(scratch / done.finished.final, done.finished.final)
    except MlocError as error:
        log.line(f"ended: {type(error).__name__}: {error}")
        raise
    finally:
        done.seconds = time.monotonic() - began
        log.save()
    return done


class _MessageHandler:
    """Does what the messages of a training ask for."""

    def __init__(
        self,
        folder: Folder,
        attempt: Attempt,
        kept: TrainingFolder,
        logs: Path,
        log: Callable[[str], None],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._folder = folder
        self._attempt = attempt
        self._kept = kept
        self._logs = logs
        self._log = log
        self._on_progress = on_progress

    def take(self, message: Message) -> None:
        match message:
            case Progress():
                self._on_progress(message)
            case LogLine():
                self._log(message.text)
            case Saved():
                self._kept.put(Path(message.path))
                self._kept.keep_folder(self._logs, LOGS_NAME)  # as far as an attempt may go on
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


def conclude(opened: OpenTask, attempt: Attempt) -> TrainingSummary:
    """Writes `training.json` after the attempt that ended well.

    Raises:
        TerminalError: If the gate names what was not measured.
    """
    finished, spec = attempt.finished, opened.training_spec
    if finished is None:
        raise TerminalError("the training has not ended")
    gate, passed = judge(spec.evaluation, attempt.before, attempt.after)
    plan = opened.plan()
    summary = TrainingSummary(
        task_id=opened.record.task_id,
        task_type=spec.task_type,
        model=opened.model_name,
        model_revision=finished.model_revision,
        source=plan.source,
        data_version=plan.data_version,
        dataset_size=finished.dataset_size,
        bad_rows=bad_row_count(opened.folder),
        steps=finished.steps,
        resumed_step=attempt.resumed_step,
        seconds=round(attempt.seconds, 3),
        metrics=finished.metrics,
        history=tuple(finished.history),
        before=attempt.before,
        after=attempt.after,
        gate=gate,
        passed=passed,
        final=finished.final,
        device=finished.device,
        worker=worker_name(),
        started_at=attempt.started_at,
        finished_at=datetime.now(UTC),
    )
    write_training(opened.folder, summary)
    return summary


def judge(
    evaluation: Evaluation | None,
    before: dict[str, float] | None,
    after: dict[str, float] | None,
) -> tuple[str, bool]:
    """Returns what the gate says in words, and whether the model may pass.

    Raises:
        TerminalError: If the gate names what was not measured.
    """
    if evaluation is None or evaluation.gate is None:
        return "", True
    try:
        result = parse_gate(evaluation.gate).check(before or {}, after or {})
    except KeyError as error:
        measured = ", ".join(after or {}) or "nothing"
        raise TerminalError(
            f"evaluation.gate {evaluation.gate!r} asks for {error.args[0]!r}, and what was "
            f"measured is {measured}"
        ) from error
    return result.text, result.passed
