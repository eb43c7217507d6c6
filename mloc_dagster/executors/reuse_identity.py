"""What answers a task's rows, to the byte: model, adapters, engine and how they were loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from pydantic import JsonValue

from mloc_dagster import __version__
from mloc_dagster.executors.engine import Engine
from mloc_dagster.executors.model_files import (
    FileStamp,
    content_digest,
    folder_revision,
    stamps_of,
)
from mloc_dagster.executors.reuse_key import digest_of
from mloc_dagster.executors.transformers_model import model_place
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.engines import adapter_name
from mloc_dagster.schema.model import Adapter
from mloc_dagster.schema.task import ModelSpec

FORMAT = 2
"""Raised whenever equal keys may come to mean other answers."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_BATCHING = {"max_batch_size", "max_batch_tokens", "low_cpu_mem_usage", "device_map"}
_NAMES_OTHER_CONTENT = frozenset(
    (
        # Weights, tokenizers and configurations of another place.
        *("model_weights", "tokenizer", "tokenizer_revision", "hf_config_path"),
        *("generation_config", "model_loader_extra_config", "default_mm_loras"),
        *("speculative_config", "spec_model", "weight_transfer_config"),
        # Code by its name, which says nothing of its version.
        *("code_revision", "logits_processors", "model_class_overrides", "scheduler_cls"),
        *("worker_cls", "worker_extension_cls", "distributed_executor_backend"),
        *("io_processor_plugin", "reasoning_parser_plugin"),
        # States that other engines computed.
        *("kv_transfer_config", "ec_transfer_config", "kv_offloading_backend"),
        # The same, as fields of an argument.
        *("compilation_config.backend", "compilation_config.inductor_passes"),
        "ec_manager_config.encoder_cache_manager_cls",
        "structured_outputs_config.reasoning_parser_plugin",
    )
)
"""Engine arguments of vLLM 0.32 that may name what changes under the same name."""

_PARTS_OF_VLLM: dict[str, tuple[str, ...]] = {
    "compilation_config.backend": ("eager", "inductor"),
    "distributed_executor_backend": ("mp", "uni", "ray", "external_launcher"),
    "generation_config": ("auto", "vllm"),  # auto is the model's own
    "kv_offloading_backend": ("native",),
    "worker_cls": ("auto",),
}
_NOT_READ = {"allowed_local_media_path", "download_dir"}  # folders that are not the model's


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
    loading = model.transformers.model_dump(mode="json", exclude=_BATCHING)
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
        canonical_json(loading),
        canonical_json(dict(sorted(model.vllm.items()))),
        [canonical_json(adapter.model_dump(mode="json")) for adapter in model.adapters],
        contents,
    )


def _refuse_the_unknown(spec: ModelSpec, engine: Engine) -> None:
    model = spec.model
    if not engine.revision:
        raise NoReuseError("the engine does not know the model's revision")
    blocks = model.source, model.transformers
    if any(each.trust_remote_code for each in blocks) or model.vllm.get("trust_remote_code"):
        raise NoReuseError("code that comes with the weights has no revision of its own")
    if not Path(model_place(model.source)).is_dir() and not is_commit(engine.revision):
        raise NoReuseError(f"{engine.revision!r} is no commit of the hub")
    for adapter in model.adapters:
        if _local(adapter) is None:
            raise NoReuseError(f"what {adapter.path or adapter.url} holds may change")
    for name in sorted(_NAMES_OTHER_CONTENT):
        if not _is_known(name, _argument(model.vllm, name)):
            raise NoReuseError(f"model.vllm.{name} names something without a revision")


def _argument(arguments: Mapping[str, JsonValue], name: str) -> JsonValue:
    """Returns an argument, or a field of one: `compilation_config.backend`."""
    argument, _, field = name.partition(".")
    value = arguments.get(argument)
    if not field:
        return value
    return value.get(field) if isinstance(value, dict) else None


def _is_known(name: str, value: JsonValue) -> bool:
    """Tells whether all that an engine argument names is on this disk, a commit, or vLLM's own."""
    if value is None or value == "" or value in _PARTS_OF_VLLM.get(name, ()):
        return True
    if isinstance(value, str):
        return (
            is_commit(value) if name.endswith("_revision") else any(True for _ in _paths_in(value))
        )
    if isinstance(value, list):
        return all(_is_known(name, each) for each in value)
    if isinstance(value, dict):
        # A draft's other fields say how it is used; without one, the method may be anybody's code.
        named = [value.get("model") or "?"] if name == "speculative_config" else value.values()
        return all(_is_known(name, each) for each in named)
    return True  # a number names nothing


def is_commit(revision: str) -> bool:
    """Tells whether a hub's revision is a commit: a branch or a tag may move."""
    return _COMMIT.fullmatch(revision) is not None


def _local_places(spec: ModelSpec) -> list[Path]:
    model = spec.model
    adapters = (_local(adapter) for adapter in model.adapters)
    return [
        *_paths_in(model_place(model.source)),
        *(place for place in adapters if place is not None),
        *_paths_in({name: model.vllm[name] for name in model.vllm.keys() - _NOT_READ}),
    ]


def _local(adapter: Adapter) -> Path | None:
    place = (adapter.path or adapter.url or "").removeprefix("file://")
    path = Path(place).expanduser()
    return path if place and path.exists() else None


def _paths_in(value: JsonValue | Mapping[str, JsonValue]) -> Iterator[Path]:
    if isinstance(value, str):
        path = Path(value).expanduser()
        if len(value) < os.pathconf("/", "PC_PATH_MAX") and "\0" not in value and path.exists():
            yield path
    elif isinstance(value, Mapping):
        for name in sorted(value):
            yield from _paths_in(value[name])
    elif isinstance(value, list):
        for each in value:
            yield from _paths_in(each)
