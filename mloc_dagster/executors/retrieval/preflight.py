"""What is known of an index before the tasks of a template are begun; which version is pinned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.executors.input_planning import model_file
from mloc_dagster.executors.retrieval.chunking import load_tokenizer
from mloc_dagster.executors.retrieval.pinned import PinnedVersion, read_pinned, write_pinned
from mloc_dagster.executors.retrieval.publishing import content_of
from mloc_dagster.executors.retrieval.query_model import query_fields
from mloc_dagster.index import IndexInfo, index_info, index_names
from mloc_dagster.results import Folder
from mloc_dagster.schema import (
    ChunkSpec,
    Index,
    IndexSpec,
    RetrieveSpec,
    TaskSpec,
    built_in,
    tools_in,
)

_MOST_ADDED = 16
"""Tokens that models add to a text; the tokenizer is asked only where it may matter."""


def check_index(spec: IndexSpec | RetrieveSpec, others: Sequence[TaskSpec]) -> None:
    """Checks the index of a task before anything runs.

    Args:
        spec: The task.
        others: The other tasks of its template, which may build the index.

    Raises:
        UnknownNameError: If nobody built an index of that name; names the nearest.
        InputError: If a secret is missing, vectors of the model do not fit the index, or chunks
            are longer than what it reads.
        MissingExtraError: If the engine's library is not installed.
        TransientError: If the index cannot be reached.
    """
    builds = isinstance(spec, IndexSpec) or built_in(others, spec.index)
    info = index_info(spec.index)
    if not builds:
        found = searchable(spec.index, info)
        if isinstance(spec, RetrieveSpec):
            chosen_version(spec, found)
    elif isinstance(spec, RetrieveSpec) and spec.search.version is not None:
        raise InputError(
            "search.version names a version that is there, and this template builds a new one of "
            f"the index {spec.index.name!r}, which it searches: leave it out"
        )
    if info is not None and not _by_words_alone(spec):
        _check_dimension(spec, info)
    if isinstance(spec, IndexSpec) and not spec.pooling.truncate:
        for each in others:
            if isinstance(each, ChunkSpec) and each.chunk.tokenizer == spec.model.source:
                _check_chunks_fit(each, spec)


def check_searched(spec: TaskSpec, others: Sequence[TaskSpec]) -> None:
    """Checks the indexes that a task's tools search before anything runs.

    Raises:
        MlocError: As `check_index`; or nothing tells which model embeds the queries.
    """
    for _, tool in tools_in(spec):
        if tool.rag is not None and not built_in(others, tool.rag.place):
            searchable(tool.rag.place, index_info(tool.rag.place))
            query_fields(tool.rag.place, tool.rag.search)


def pin_version(spec: RetrieveSpec, folder: Folder, upstream: Mapping[str, Folder]) -> None:
    """Writes down which version of the index a task searches, once and for all of its rows.

    It is what an `index` task has made that this one waits for; else the newest there is.

    Raises:
        UnknownNameError: If there is no such index.
        InputError: If it has no version yet.
    """
    if read_pinned(folder) is not None:
        return
    made = [read_pinned(each) for each in upstream.values()]
    found = next((each for each in made if each is not None and each.is_of(spec.index)), None)
    if found is None:
        found = chosen_version(spec, searchable(spec.index, index_info(spec.index)))
    write_pinned(folder, found.model_copy(update={"removed": None}))


def inherit_version(_: TaskSpec, folder: Folder, upstream: Mapping[str, Folder]) -> None:
    """Writes down which version a task's passages come from, as the task before it knows it."""
    found = next(filter(None, map(read_pinned, upstream.values())), None)
    if found is not None and read_pinned(folder) is None:
        write_pinned(folder, found.model_copy(update={"removed": None}))


def _by_words_alone(spec: IndexSpec | RetrieveSpec) -> bool:
    return isinstance(spec, RetrieveSpec) and spec.search.mode == "keyword"


def searchable(index: Index, info: IndexInfo | None) -> IndexInfo:
    """Returns what an index is, if it can be searched.

    Raises:
        UnknownNameError: If there is no such index; names the nearest.
        InputError: If it has no version yet.
    """
    if info is None:
        known = index_names(index.engine) if index.url is None else ()
        raise UnknownNameError("index", index.name, known)
    if not info.versions and info.model:
        raise InputError(f"the index {index.name!r} has no version yet: its build has not ended")
    return info


def chosen_version(spec: RetrieveSpec, info: IndexInfo) -> PinnedVersion:
    """Returns the version that a task names, or the newest.

    Raises:
        InputError: If there is no such version.
    """
    number = spec.search.version
    version = info.versions[-1] if info.versions else None
    if number is not None:
        version = next((each for each in info.versions if each.number == number), None)
        if version is None:
            there = ", ".join(str(each.number) for each in info.versions) or "none"
            raise InputError(
                f"the index {info.name!r} has no version {number}; it has the versions: {there}"
            )
    return PinnedVersion(
        engine=spec.index.engine,
        name=spec.index.name,
        url=spec.index.url,
        version=None if version is None else version.number,
        chunks=info.chunks if version is None else version.chunks,
        content="" if version is None else content_of(version),
    )


def _check_dimension(spec: IndexSpec | RetrieveSpec, info: IndexInfo) -> None:
    """Compares lengths of vectors, as far as that of the model's is known without loading it."""
    length = spec.pooling.dimensions or _hidden_size(model_file(spec.model.source, "config.json"))
    if length is not None and length != info.dimension:
        raise InputError(
            f"the index {info.name!r} has vectors of {info.dimension} numbers, and those of "
            f"{spec.model.source.identifier!r} have {length}: take the model that built the index"
            + (f" ({info.model})" if info.model else "")
        )


def _check_chunks_fit(chunks: ChunkSpec, spec: IndexSpec) -> None:
    """Compares sizes of chunks, in the model's own tokens, with what it reads of a text."""
    source, size = spec.model.source, chunks.chunk.size
    limits = [
        _fields(model_file(source, file)).get(name)
        for file, name in (
            ("config.json", "max_position_embeddings"),
            ("tokenizer_config.json", "model_max_length"),
            ("sentence_bert_config.json", "max_seq_length"),
        )
    ]
    limit = min((each for each in limits if isinstance(each, int) and each > 0), default=None)
    if limit is None or size < limit - _MOST_ADDED:
        return
    added = load_tokenizer(source).num_special_tokens_to_add(is_pair=False)
    if size + added > limit:
        raise InputError(
            f"chunk.size is {size:,} tokens, to which {source.identifier!r} adds {added}, and it "
            f"reads at most {limit:,}: give a size of at most {limit - added:,}, or "
            "pooling.truncate: true, which embeds the beginning of longer chunks"
        )


def _hidden_size(path: Path | None) -> int | None:
    config = _fields(path)
    text = config.get("text_config")
    found = cast("dict[str, object]", text) if isinstance(text, dict) else config
    size = found.get("hidden_size", found.get("dim", found.get("n_embd")))
    return size if isinstance(size, int) else None


def _fields(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    try:
        given = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}  # whoever loads the model says what is wrong with it
    return cast("dict[str, object]", given) if isinstance(given, dict) else {}
