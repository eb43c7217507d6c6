"""The templates that were run from this home and are not in the library, for Dagster to define.

`mloc run FILE` leaves assets as any run does, and so does a submission. Without a definition they
have neither group nor lineage, and their job has no history. What was run is kept, and not where it
was found: a run may be of a mapping, of values that were changed for it, or of a file that is gone.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.errors import MlocError
from mloc_dagster.library import library_dirs
from mloc_dagster.results import forget, open_store, put_aside, put_back
from mloc_dagster.settings import settings

_log = logging.getLogger("dagster.mloc")

MOST_TEMPLATES = 50
"""Code locations are loaded by many processes: each template costs each of them some 10 ms."""

_MOST_BYTES = 1 << 20
"""A template with more rows in it would keep them all waiting."""

_NAME = re.compile(r"(?P<template>.+)@[0-9a-f]{16}\.json")


def remember_template(compiled: CompiledTemplate, *, submitted: bool = False) -> None:
    """Keeps what is run for Dagster's UI, unless it is a file of the library.

    Args:
        compiled: What is run.
        submitted: Whether it came over the API.
    """
    if _is_in_library(compiled):
        return
    path = _folder(submitted) / f"{compiled.metadata.name}@{compiled.content_hash[:16]}.json"
    try:
        if path.exists():
            path.touch()
            return
        # Literal secrets lie with the results, as those of the task do.
        public = put_aside(open_store(), path.stem, compiled.document)
        data = json.dumps(public).encode()
        if len(data) <= _MOST_BYTES:
            _write(path, data)
            _forget_others(path)
    except (MlocError, OSError) as error:
        _log.warning("Dagster's UI will not know the template that is run: %s", error)


def recent_names() -> tuple[str, ...]:
    """Returns what changes when another template was run with `mloc run`."""
    return tuple(sorted(each.name for each in _newest_first(_folder(submitted=False))))


def recent_templates(*, submitted: bool) -> list[CompiledTemplate]:
    """Returns the templates that were run last, the newest first; none runs by itself.

    Args:
        submitted: Whether those that came over the API are among them, after the others.
    """
    folders = [_folder(submitted=False), *([_folder(submitted=True)] if submitted else [])]
    paths = [path for each in folders for path in _newest_first(each)[:MOST_TEMPLATES]]
    return list(_compiled(paths))


def _compiled(paths: Sequence[Path]) -> Iterator[CompiledTemplate]:
    for path in paths:
        try:
            document = put_back(open_store(), path.stem, json.loads(path.read_bytes()))
            found = compile_mapping(document, str(path))
        except (MlocError, OSError, ValueError) as error:
            _log.warning("left out: %s, which was run here: %s", path.name, error)
            continue
        if found.unbuilt:
            continue
        yield replace(found, schedule=None)


def _is_in_library(compiled: CompiledTemplate) -> bool:
    roots = [each.resolve() for each in library_dirs()]
    file = Path(compiled.tasks[0].at.file).resolve()
    return file.is_file() and any(file.is_relative_to(each) for each in roots)


def _folder(submitted: bool) -> Path:
    return settings().home.resolve() / "recent" / ("submitted" if submitted else "run")


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(each.stat().st_mtime_ns, each) for each in folder.glob("*@*.json")]
    return [each for _, each in sorted(found, reverse=True)]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{uuid4().hex}")
    partial.write_bytes(data)
    partial.replace(path)


def _forget_others(path: Path) -> None:
    """Removes what was run under the same name before, and what was run long ago."""
    name = _template(path)
    newest = [each for each in _newest_first(path.parent) if each != path]
    old = newest[MOST_TEMPLATES - 1 :]
    for each in {*old, *(other for other in newest if _template(other) == name)}:
        each.unlink(missing_ok=True)
        forget(open_store(), each.stem)


def _template(path: Path) -> str:
    found = _NAME.fullmatch(path.name)
    return found["template"] if found else ""
