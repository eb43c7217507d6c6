"""Where a model's weights lie, in which state, and whether code beside them may run.

A digest is over every byte, and is kept under all that the file system changes with a file: its
place, inode, size, and both of its times. A file of 16 MB or more is read once for all processes
of this home.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.errors import MlocError, TerminalError, TransientError
from mloc_dagster.executors.training.weight_files import refuse_pickles
from mloc_dagster.models import builtin_model_path
from mloc_dagster.net import current_reach
from mloc_dagster.schema import (
    ModelSource,
    ModelSpec,
    Task,
    TrainingSpec,
    certain_engine,
    digest_of,
)
from mloc_dagster.settings import settings


def check_leave(tasks: Iterable[Task]) -> None:
    """Raises if any task of a template may not run here, before the first one has begun.

    Raises:
        TerminalError: If one asks to run code that comes with weights, and that is not allowed.
    """
    for task in tasks:
        if isinstance(task.spec, ModelSpec | TrainingSpec):
            trusts_remote_code(task.spec.model.source, asked=_asks(task.spec), task=task.name)


def _asks(spec: ModelSpec | TrainingSpec) -> bool:
    """Tells whether the engine that will run a task is told to run such code.

    Options of the other engines have no effect; where the worker chooses, it looks itself.
    """
    if isinstance(spec, TrainingSpec):
        return spec.model.transformers.trust_remote_code
    engine = certain_engine(spec)
    if engine is None:
        return False
    options = spec.model.options(engine.name, engine.options)
    return getattr(options, "trust_remote_code", False) is True


def trusts_remote_code(source: ModelSource, *, asked: bool, task: str = "") -> bool:
    """Returns whether code that comes with the weights may run.

    Args:
        source: The model.
        asked: Whether the engine's own options ask for it.
        task: The stage or node that asks, where there are several.

    Raises:
        TerminalError: If the template asks for it and the operator has not allowed it.
    """
    asked = asked or source.trust_remote_code
    if asked and not settings().trust_remote_code:
        who = f"{task!r}" if task else "the template"
        raise TerminalError(
            f"{who} asks to run code that comes with {source.identifier!r} "
            "(trust_remote_code), which this worker does not allow: if you trust that code, set "
            "MLOC_TRUST_REMOTE_CODE=true where the worker starts"
        )
    return asked


SHARED_FROM_BYTES = 16 << 20
"""Files of this size are worth a note for other processes: reading one takes some 10 ms."""

_BLOCK_BYTES = 1 << 20
_SETTLED_NS = 2_000_000_000
"""A file that was changed more lately could change again within the same tick of its clock."""


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file as the file system describes it; any change of it changes the stamp."""

    path: str
    name: str
    size: int
    modified_ns: int
    changed_ns: int
    inode: int


def stamps_of(root: Path) -> tuple[FileStamp, ...]:
    """Returns the stamp of a file, or of all that an engine may read below a folder."""
    return tuple(_stamp(path, root) for path in ([root] if root.is_file() else _files_below(root)))


def content_digest(root: Path) -> bytes:
    """Returns the digest of a file, or of all names and bytes that an engine may read below."""
    return digest_of(*((stamp.name, _file_digest(stamp)) for stamp in stamps_of(root)))


def folder_revision(place: str) -> str:
    """Returns `sha256:…` over all of a model's files; empty where there is no folder."""
    folder = Path(place)
    return f"sha256:{content_digest(folder).hex()}" if folder.is_dir() else ""


def paths_in(value: JsonValue | Mapping[str, JsonValue]) -> Iterator[Path]:
    """Yields the files and folders of this machine that a value names, wherever in it."""
    if isinstance(value, str):
        path = Path(value).expanduser()
        if len(value) < os.pathconf("/", "PC_PATH_MAX") and "\0" not in value and path.exists():
            yield path
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from paths_in(value[name])
    elif isinstance(value, list):
        for each in value:
            yield from paths_in(each)


def _stamp(path: Path, root: Path) -> FileStamp:
    about = path.stat()
    return FileStamp(
        path=str(path),
        name="" if path == root else path.relative_to(root).as_posix(),
        size=about.st_size,
        modified_ns=about.st_mtime_ns,
        changed_ns=about.st_ctime_ns,
        inode=about.st_ino,
    )


def _files_below(root: Path) -> list[Path]:
    found: list[Path] = []
    for folder, folders, files in os.walk(root):
        # Checkpoints of a training lie below the model that came of it; no engine reads them.
        folders[:] = [
            name for name in folders if not name.startswith((".", "checkpoint-", "__pycache__"))
        ]
        found += [Path(folder, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _file_digest(stamp: FileStamp) -> bytes:
    if time.time_ns() - stamp.changed_ns < _SETTLED_NS:
        return _read(stamp.path)
    return _settled_digest(stamp)


@lru_cache(maxsize=4096)
def _settled_digest(stamp: FileStamp) -> bytes:
    if stamp.size < SHARED_FROM_BYTES:
        return _read(stamp.path)
    note = settings().home / "file-digests" / digest_of(*map(str, astuple(stamp))).hex()
    with suppress(OSError, ValueError):  # without the note the file is read
        return bytes.fromhex(note.read_text().strip())
    digest = _read(stamp.path)
    if _stamp(Path(stamp.path), Path(stamp.path)).changed_ns == stamp.changed_ns:
        with suppress(OSError):  # a home that cannot be written costs time, and no answer
            _keep(note, digest)
    return digest


def _keep(note: Path, digest: bytes) -> None:
    note.parent.mkdir(parents=True, exist_ok=True)
    draft = note.with_name(f".{note.name}.{secrets.token_hex(4)}")
    draft.write_text(digest.hex())
    draft.replace(note)


def _read(path: str) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


_COMMIT = re.compile(r"[0-9a-f]{40}")

# What huggingface_hub and httpx raise when the answer may be another one tomorrow.
_TRANSIENT_CAUSES = frozenset(
    {"ConnectError", "ConnectTimeout", "ReadTimeout", "ConnectionError", "Timeout", "ReadError"}
)
_TERMINAL_CAUSES = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError", "HFValidationError"}
)


def model_place(source: ModelSource) -> str:
    """Returns where the weights are: a folder, or the hub's id; of an endpoint its address.

    What lies at an address, such as the results of a training on a store elsewhere, is fetched.

    Raises:
        TerminalError: If the template names a folder without a model, or with pickled weights.
        InputError: If there are no weights at the address.
        TransientError: If they cannot be fetched now.
    """
    if source.type == "openai":
        return source.base_url or ""
    if source.type == "builtin":
        return str(builtin_model_path(source.identifier))
    if source.type == "local" or Path(source.identifier).exists():  # which the libraries prefer
        current_reach().check_place(source.identifier)
    if source.type == "local" and "://" in source.identifier:
        from mloc_dagster.executors.training.weights import fetched_model

        return str(fetched_model(source.identifier))
    if source.type == "local":
        folder = Path(source.identifier).expanduser()
        if not (folder / "config.json").is_file():
            missing = "has no config.json" if folder.is_dir() else "does not exist"
            raise TerminalError(f"the model folder {source.identifier!r} {missing}")
        refuse_pickles(folder)
        return str(folder)
    return source.identifier


def hub_commit(source: ModelSource) -> str:
    """Returns the commit that a hub model's revision means now; empty for models elsewhere.

    Whoever loads a model asks once, and then for this commit: all its files are of one state, and
    an engine that is started again gets the same weights, though a branch has moved on. Where the
    hub does not say, it is the revision as the template has it: loading tells then what is wrong.
    """
    if source.type != "huggingface":
        return ""
    from transformers.utils.hub import resolve_revision

    found = resolve_revision(source.identifier, source.revision)
    return getattr(found, "resolved", found) or ""


def is_commit(revision: str) -> bool:
    """Tells whether a hub's revision is a commit: a branch or a tag may move."""
    return _COMMIT.fullmatch(revision) is not None


@contextmanager
def clear_load_errors(source: ModelSource) -> Iterator[None]:
    """Tells what a retry may cure from what it will not; transformers wraps all in `OSError`.

    Raises:
        TerminalError: If there is no such model, or it cannot be loaded.
        TransientError: If the hub cannot be reached.
    """
    try:
        yield
    except MlocError:
        raise
    except (OSError, ValueError, ImportError) as error:
        causes = {type(cause).__name__ for cause in _chain(error)}
        what = f"{source.type} model {source.identifier!r}"
        if source.revision:
            what += f" at revision {source.revision!r}"
        if causes & _TRANSIENT_CAUSES and not causes & _TERMINAL_CAUSES:
            raise TransientError(f"the hub could not be reached for the {what}: {error}") from error
        if "trust_remote_code" in str(error):
            raise TerminalError(
                f"the {what} needs code that comes with its weights: set trust_remote_code: true "
                "in model.source, and MLOC_TRUST_REMOTE_CODE=true where the worker starts"
            ) from error
        raise TerminalError(f"the {what} cannot be loaded: {error}") from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
