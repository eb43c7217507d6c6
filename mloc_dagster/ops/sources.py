"""The data sets and models that templates name, as external assets: one each, whoever reads it.

What an asset says follows from its key alone: a data set that several templates read in several
ways is the same asset in all of them, and Dagster takes equal definitions of a key as one.
"""

import hashlib
import posixpath
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import dagster as dg
from pydantic import BaseModel

from mloc_dagster.compile import references_in
from mloc_dagster.library import library_dir
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.ops.plan import ROWS
from mloc_dagster.redaction import MASK, redact_urls
from mloc_dagster.schema import (
    Adapter,
    CheckpointLoad,
    DatasetData,
    Documents,
    ModelSource,
    OpenaiBatchData,
    RewardModel,
    TaskSpec,
    TrainingData,
    TrainingSpec,
    data_suffix,
    names_files,
)
from mloc_dagster.settings import settings

Kind = Literal["dataset", "model"]

_HUB = "https://huggingface.co"
_FORMATS = {".ndjson": "json", ".jsonl": "json", ".tsv": "csv", ".txt": "text"}
_OTHER = re.compile(r"[^A-Za-z0-9_.-]+")


def sources_of(spec: TaskSpec) -> tuple[dg.AssetSpec, ...]:
    """Returns the data sets and models that a task reads, each once.

    What an earlier stage of the template makes is none of them, nor are rows that an asset holds.

    Args:
        spec: The task's.
    """
    found = [_source(*each) for each in _named(spec) if not _is_made_by_others(each[1])]
    return tuple({each.key: each for each in found}.values())


def dataset_key(url: str) -> dg.AssetKey:
    """Returns the key of a data set.

    Args:
        url: As a template names it.
    """
    return _source("dataset", url).key


_defined: dict[dg.AssetKey, dg.AssetSpec] = {}
"""What templates have named in this process: a key means the same wherever it is named."""


def known_source(key: dg.AssetKey) -> dg.AssetSpec | None:
    """Returns a data set or model that a template has named; None of any other asset."""
    return _defined.get(key)


def _named(block: BaseModel) -> Iterator[tuple[Kind, str]]:
    """Yields what a block and those below it name."""
    match block:
        case DatasetData() | Documents() | OpenaiBatchData():
            yield "dataset", block.url
        case TrainingData(dataset_name=str(name)):
            yield "dataset", name
        case ModelSource():
            yield "model", _model(block)
        case RewardModel():
            local = Path(block.identifier).is_dir()
            yield "model", _absolute(block.identifier) if local else block.identifier
        case Adapter() | CheckpointLoad() if place := block.path or block.url:
            yield "model", place
        case _:
            pass
    fields = {**block.__dict__, **(block.__pydantic_extra__ or {})}
    if isinstance(block, TrainingSpec) and block.checkpoint is not None and block.checkpoint.load:
        del fields["model"]  # it starts from other weights
    for value in fields.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, BaseModel):
                yield from _named(each)


def _model(source: ModelSource) -> str:
    if source.type == "openai":
        return f"{source.base_url}/{source.identifier}"
    local = source.type == "local" and "${" not in source.identifier
    return _absolute(source.identifier) if local else source.identifier


def _absolute(folder: str) -> str:
    return str(Path(folder).expanduser().resolve())


def _is_made_by_others(text: str) -> bool:
    given = settings().home.resolve() / "given-rows"
    return text.startswith((f"{ROWS}:", f"{given}/")) or next(references_in(text), None) is not None


@lru_cache(maxsize=4096)
def _source(kind: Kind, text: str) -> dg.AssetSpec:
    parts, uri, where = _place(kind, text)
    suffix = data_suffix(uri) if kind == "dataset" and where != "huggingface" else None
    form = {_FORMATS.get(suffix, suffix[1:])} if suffix else set[str]()
    what = "Data set" if kind == "dataset" else "Model"
    spec = dg.AssetSpec(
        [f"{kind}s", *map(_key_part, parts)],
        description=f"{what} that tasks of mloc read: {uri}",
        group_name=f"{kind}s",
        kinds={kind, where} | form,
        metadata={"dagster/uri": dg.MetadataValue.text(uri)},
    )
    return _defined.setdefault(spec.key, spec)


def _place(kind: Kind, text: str) -> tuple[list[str], str, str]:
    """Returns the parts of a key, the address without credentials, and what kind of place it is."""
    if kind == "model" and text in BUILTIN_MODELS:
        return [text], text, "mloc"
    if "://" in text:
        return _remote(text)
    if text.startswith(("/", "~")) or (kind == "dataset" and names_files(text)):
        path = posixpath.normpath(text)
        shipped = f"{library_dir().resolve()}/"
        if path.startswith(shipped):
            return ["library", *path.removeprefix(shipped).split("/")], path, "file"
        return ["file", *path.strip("/").split("/")], path, "file"
    folder = "datasets/" if kind == "dataset" else ""
    return text.split("/"), f"{_HUB}/{folder}{text}", "huggingface"


def _remote(text: str) -> tuple[list[str], str, str]:
    url = urlsplit(redact_urls(text))
    host = url.netloc.rpartition("@")[2]
    # A signed address has another query each time it is made, and names the same file.
    query = "" if MASK in url.query or not url.query else f"?{url.query}"
    address = f"{url.scheme}://{host}{url.path}{query}"
    *folders, last = [each for each in (host, *url.path.split("/")) if each] or [""]
    return [url.scheme, *folders, last + query], address, url.scheme


def _key_part(text: str) -> str:
    """Returns a part of a key; one with other characters than those of a name tells what it was."""
    plain = _OTHER.sub("_", text).strip("_")
    if plain == text:
        return text
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
