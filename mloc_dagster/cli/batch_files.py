"""The files that `mloc batch` writes, their lock, its task, and the report at its end."""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import typer
from pydantic import JsonValue
from rich.console import Console

from mloc_dagster.compile import CompiledTemplate
from mloc_dagster.data import BatchFile
from mloc_dagster.display import count, duration, print_table, rate
from mloc_dagster.errors import InputError, TerminalError
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.results import TaskSummary
from mloc_dagster.schema import ModelSpec, canonical_json
from mloc_dagster.settings import settings


def check_files(source: str | None, output: Path, errors: Path) -> None:
    """Makes sure that answers and errors can be written, and replace nothing by mistake.

    Args:
        source: The batch: a path or an fsspec URL; None where the task has read it already.
        output: Where answers go.
        errors: Where requests go that failed.

    Raises:
        InputError: With the first thing that is wrong.
    """
    for option, path in (("-o", output), ("--errors", errors)):
        _check_place(option, path)
    if output.resolve() == errors.resolve():
        raise InputError(f"--errors {errors} is the same file as -o {output}: name two files")
    batch = None if source is None else _local_path(source)
    if batch is None:
        return
    for option, path in (("-o", output), ("--errors", errors)):
        if path.resolve() == batch:
            raise InputError(f"{option} {path} is the batch itself, and would replace it")


def _check_place(option: str, path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{option} {path}: the folder {folder} does not exist")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file")
    if _is_stream(path) or (path.exists() and not path.is_file()):
        raise InputError(
            f"{option} {path} is no regular file, and the answers replace what is there; "
            "name a file"
        )


def _is_stream(path: Path) -> bool:
    """Tells whether a path means what a process has open, as `/dev/stdout` does, file or not."""
    while path.is_symlink():
        if Path("/proc") in path.parent.resolve().parents:
            return True
        path = path.parent / path.readlink()
    return False


def _local_path(source: str) -> Path | None:
    """Returns the file that the batch is read from; None where it is elsewhere."""
    protocol, separator, rest = source.rpartition("://")
    if not separator:
        return Path(source).expanduser().resolve()
    return Path(rest).resolve() if protocol in ("file", "local") else None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name as a whole, or not at all; a link stays a link."""
    path = path.resolve()
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def named_model(model: str) -> str:
    """Returns the model of a command line; a folder by its whole path, the same from anywhere."""
    path = Path(model).expanduser()
    is_place = path.is_dir() or path.is_absolute() or model.startswith(".")
    return str(path.resolve()) if is_place and model not in BUILTIN_MODELS else model


def batch_task_id(compiled: CompiledTemplate, found: BatchFile) -> str:
    """Returns the id of the task that answers these requests, with this model and these options.

    What lies on this disk counts with every byte: a model or an adapter that was trained again in
    its folder is another one.

    Raises:
        InputError: If there is no such model.
    """
    from mloc_dagster.executors import file_contents

    spec = compiled.tasks[0].task.spec
    try:
        contents = file_contents(spec) if isinstance(spec, ModelSpec) else []
    except TerminalError as error:
        raise InputError(str(error)) from error
    known: list[JsonValue] = [
        found.sha256,
        spec.model_dump(mode="json", exclude={"data": {"url"}}),
        [each.hex() for each in contents],
    ]
    digest = hashlib.sha256(canonical_json(known).encode()).hexdigest()
    return f"batch-{digest[:20]}"


_FLOCK = "hhqqi"
"""`struct flock` on 64-bit Linux: type, whence, start, length, process."""


@contextmanager
def answering_alone(task_id: str) -> Iterator[None]:
    """Keeps two commands from answering the same batch, from their first second on.

    Dagster knows who is at work once a run has started, which is too late for a command that was
    given twice at once.

    Args:
        task_id: The batch's task.

    Raises:
        InputError: If another process is at it; says which.
    """
    folder = settings().home / "batches"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{task_id}.lock").open("a+", encoding="utf-8") as file:
        try:
            # Ends with this process, also by `kill -9`: engines that it left behind inherit none.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            where = f" in process {pid}" if (pid := _holder(file.fileno())) else ""
            raise InputError(
                f"task {task_id} is running{where}; wait for it, or stop it first"
            ) from None
        yield


def _holder(descriptor: int) -> int:
    """Returns the process that holds the lock; 0 if it was let go of meanwhile.

    The kernel knows from the first moment on; what a process wrote into the file would not be there
    yet when two commands start at once.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, 0, 0, 0, 0)
    kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return 0 if kind == fcntl.F_UNLCK else pid


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A batch whose files are written.

    Attributes:
        summary: Its task's figures.
        folder: Address of the task's results.
        output: The file with the answers.
        errors: The file with the requests that failed.
        answered: Requests with an answer.
        failed: Requests without one.
    """

    summary: TaskSummary
    folder: str
    output: str
    errors: str
    answered: int
    failed: int


def batch_json(outcome: BatchOutcome | None) -> dict[str, object] | None:
    """Returns what `--json` adds to the report; None when no file was written."""
    if outcome is None:
        return None
    return {
        "output": outcome.output,
        "errors": outcome.errors,
        "answered": outcome.answered,
        "failed": outcome.failed,
        "usage": outcome.summary.usage.model_dump(mode="json"),
    }


def print_batch(outcome: BatchOutcome) -> None:
    """Prints the usage report, and the files' paths last."""
    out = Console()
    out.print()
    print_table(("batch", ""), _lines(outcome), numbers=(1,), console=out)
    if outcome.summary.budget is not None:
        out.print(str(outcome.summary.budget), markup=False, soft_wrap=True)
    if outcome.failed:
        first = outcome.summary.first_errors[0]
        named = f"row {first.index}" if first.custom_id is None else first.custom_id
        out.print(
            f"{count(outcome.failed, 'request')} failed; the first, {named}: {first.error}",
            markup=False,
            soft_wrap=True,
        )
    out.print()
    typer.echo(outcome.errors)
    typer.echo(outcome.output)


def _lines(outcome: BatchOutcome) -> list[tuple[str, str]]:
    summary, usage = outcome.summary, outcome.summary.usage
    reused = usage.reused_rows.task + usage.reused_rows.cache
    lines = [
        ("requests", f"{outcome.answered + outcome.failed:,}"),
        ("rows", f"{summary.rows:,}"),
        ("errors", f"{summary.errors:,}"),
        ("prompt tokens", f"{usage.prompt_tokens:,}"),
        ("  of these cached", f"{usage.cached_tokens:,}"),
        ("output tokens", f"{usage.completion_tokens:,}"),
        *(
            [("  of these thoughts", f"{thoughts:,}")]
            if (thoughts := usage.reasoning_tokens)
            else []
        ),
        ("rows reused", f"{reused:,}"),
        ("time", duration(usage.latency_sec)),
        ("engine time", duration(usage.engine_seconds)),
        *([("GPU time", duration(usage.gpu_seconds))] if usage.gpu_seconds else []),
        ("output tokens/s", rate(summary.tokens_per_s)),
        ("rows/s", rate(summary.rows_per_s)),
    ]
    if usage.energy_joules is not None:
        lines.append(("energy", f"{usage.energy_joules:,.0f} J"))
    if usage.cost is not None:
        lines.append(("cost", f"{usage.cost:.6f}"))
    return lines
