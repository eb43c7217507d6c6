"""What answers a task's rows, to the byte; finding answers of earlier tasks by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from mloc_dagster import __version__
from mloc_dagster.errors import MlocError
from mloc_dagster.executors.engines.choice import loader_of
from mloc_dagster.executors.engines.protocol import Engine, OptionsIdentity
from mloc_dagster.executors.model_source import (
    FileStamp,
    content_digest,
    folder_revision,
    is_commit,
    model_place,
    paths_in,
    stamps_of,
)
from mloc_dagster.results import CACHE_FOLDER, RowCache, open_store
from mloc_dagster.schema import Adapter, Model, ModelSpec, adapter_name, canonical_json, digest_of
from mloc_dagster.settings import settings

FORMAT = 4
"""Raised whenever equal keys may come to mean other answers."""


class NoReuseError(Exception):
    """Answers of this model cannot be told from those of another one."""


FileStamps = tuple[FileStamp, ...]


@dataclass(frozen=True, slots=True)
class LoadedFiles:
    """What an engine was loaded from.

    Attributes:
        stamps: Of all its local files, taken before it read them.
        revision: What they hold; see `answering_revision`.
    """

    stamps: FileStamps
    revision: str = ""


_loaded_from: WeakKeyDictionary[Engine, LoadedFiles] = WeakKeyDictionary()


def file_stamps(spec: ModelSpec) -> FileStamps:
    """Returns the stamps of all local files that a model is loaded from; reads none of them."""
    return tuple(stamp for root in _local_places(spec) for stamp in stamps_of(root))


def file_contents(spec: ModelSpec) -> list[bytes]:
    """Returns a digest over every byte of each local place that a model is loaded from.

    That takes a second per one or two gigabytes the first time.

    Raises:
        TerminalError: If the template names a folder without a model.
    """
    return [content_digest(place) for place in _local_places(spec)]


def remember_files(engine: Engine, files: LoadedFiles) -> None:
    """Keeps in mind what an engine was loaded from."""
    _loaded_from[engine] = files


def loaded_revision(engine: Engine) -> str:
    """Returns the revision of what an engine was loaded from; see `answering_revision`."""
    known = _loaded_from.get(engine)
    return known.revision if known is not None and known.revision else engine.revision


def files_unchanged(spec: ModelSpec, engine: Engine) -> bool:
    """Tells whether the files that an engine was loaded from are still the same."""
    known = _loaded_from.get(engine)
    return known is not None and known.stamps == file_stamps(spec)


def files_changed(spec: ModelSpec, engine: Engine) -> bool:
    """Tells whether an engine is known to have been loaded from other files than there are now."""
    known = _loaded_from.get(engine)
    return known is not None and known.stamps != file_stamps(spec)


def answering_revision(spec: ModelSpec, engine: Engine) -> str:
    """Returns which state of a model answers: the hub's commit, or `sha256:…` over its files.

    Adapters on this disk follow, each as `+name@sha256:…`: a model with another adapter answers
    otherwise.
    """
    base = folder_revision(model_place(spec.model.source)) or engine.revision
    found = ((adapter_name(each), _local(each)) for each in spec.model.adapters)
    named = [
        f"+{name}@sha256:{content_digest(place).hex()[:16]}"
        for name, place in found
        if place is not None
    ]
    return base + "".join(named)


def model_identity(spec: ModelSpec, engine: Engine) -> bytes:
    """Returns the digest of all that changes the answers of every row.

    Local files count with their whole content, which takes a second per one or two gigabytes
    the first time; files that changed since the engine read them are not those that answer.

    Raises:
        NoReuseError: If something that changes answers is not known exactly.
    """
    _refuse_the_unknown(spec, engine)
    unchanged = files_unchanged(spec, engine)
    contents = file_contents(spec)
    if not unchanged or not files_unchanged(spec, engine):
        raise NoReuseError("the model's files are not those that it was loaded from")
    model = spec.model
    options = {name: each.answers for name, each in _options(model).items() if each.answers}
    return digest_of(
        "mloc row",
        FORMAT,
        __version__,
        spec.task_type,
        canonical_json(model.source.model_dump(mode="json")),
        engine.revision,
        engine.label,
        engine.device.partition(":")[0],
        spec.resources.hardware.gpu.count,
        canonical_json(options),
        [canonical_json(adapter.model_dump(mode="json")) for adapter in model.adapters],
        contents,
    )


def _refuse_the_unknown(spec: ModelSpec, engine: Engine) -> None:
    model = spec.model
    if model.source.type == "openai":
        named = f"{model.source.identifier} {model.source.base_url}"
        if model.source.revision is None or "${" in named:
            raise NoReuseError(
                "an endpoint may change its model at any time: write identifier and base_url as "
                "they are, and name the model's state in model.source.revision, to have answers "
                "reused under it"
            )
    elif not engine.revision:
        raise NoReuseError("the engine does not know the model's revision")
    blocks = model.source, *model.engine_blocks().values()
    if any(getattr(each, "trust_remote_code", False) for each in blocks):
        raise NoReuseError("code that comes with the weights has no revision of its own")
    local = model.source.type == "openai" or Path(model_place(model.source)).is_dir()
    if not local and not is_commit(engine.revision):
        raise NoReuseError(f"{engine.revision!r} is no commit of the hub")
    for adapter in model.adapters:
        if _local(adapter) is None:
            raise NoReuseError(f"what {adapter.path or adapter.url} holds may change")
    for name, each in _options(model).items():
        if each.unknown is not None:
            raise NoReuseError(f"model.{name}.{each.unknown} names something without a revision")


def _options(model: Model) -> dict[str, OptionsIdentity]:
    """Returns what each engine's block, by its name, has to do with the answers."""
    return {each.name: loader_of(each).identity(model) for each in model.engine_blocks()}


def _local_places(spec: ModelSpec) -> list[Path]:
    model = spec.model
    adapters = (_local(adapter) for adapter in model.adapters)
    return [
        *paths_in(model_place(model.source)),
        *(place for place in adapters if place is not None),
        *(place for each in _options(model).values() for place in each.places),
    ]


def _local(adapter: Adapter) -> Path | None:
    place = (adapter.path or adapter.url or "").removeprefix("file://")
    path = Path(place).expanduser()
    return path if place and path.exists() else None


@dataclass(frozen=True, slots=True)
class EarlierAnswers:
    """Where answers of earlier tasks are, and what tells whose they are.

    Attributes:
        identity: Digest of what answers.
        rows: Its cache; None when there is none.
    """

    identity: bytes = b""
    rows: RowCache | None = None


@contextmanager
def earlier_answers(
    spec: ModelSpec, engine: Engine, log: Callable[[str], None]
) -> Iterator[EarlierAnswers]:
    """Lends the cache of a task's model; what it was given is on the store when the block ends.

    Args:
        spec: The task.
        engine: What answers it.
        log: Hears why there is no reuse, when it was asked for.
    """
    if not spec.reuse:
        yield EarlierAnswers()
        return
    try:
        identity = model_identity(spec, engine)
    except (NoReuseError, MlocError, OSError) as reason:
        log(f"reuse: off: {reason}")
        yield EarlierAnswers()
        return
    cache = RowCache(
        open_store().folder(CACHE_FOLDER),
        identity.hex()[:32],
        log,
        limit_bytes=settings().row_cache_bytes,
        # An engine that broke down reads its files once more when it starts again.
        valid=lambda: files_unchanged(spec, engine),
    )
    try:
        yield EarlierAnswers(identity, cache)
    finally:
        cache.close()
