"""The files that `mloc batch` writes: beside nothing that they could harm, and each as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mloc_dagster.errors import InputError


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
