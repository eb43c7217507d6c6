"""Publishing a version of an index, when every document of its task is there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Set as AbstractSet

from pydantic import JsonValue

from mloc_dagster.data import read_input
from mloc_dagster.errors import DataError, TerminalError
from mloc_dagster.executors.retrieval.pinned import PinnedVersion, write_pinned
from mloc_dagster.executors.retrieval.query_model import write_query_model
from mloc_dagster.index import (
    IndexInfo,
    IndexVersion,
    OpenIndex,
    delete_keywords,
    keyword_versions,
    open_index,
    write_keywords,
)
from mloc_dagster.planning import Plan
from mloc_dagster.results import BUDGET_FAULT, Folder, read_rows
from mloc_dagster.schema import Index, IndexSpec

_MODULUS = 1 << 128


def conclude_index(spec: IndexSpec, folder: Folder, plan: Plan) -> Mapping[str, JsonValue]:
    """Publishes the chunks of all documents that did not fail; says so in the result.

    Done again, it publishes nothing twice. Where the newest version has exactly these chunks, that
    one is the result.

    Raises:
        DataError: If there is no chunk at all.
        TerminalError: If documents were left out for the task's budget.
        TransientError: If the index cannot be reached.
    """
    failed = _failed(folder)
    index = open_index(spec.index)
    try:
        pinned = _publish(spec, folder, plan, failed, index)
        _write_keywords(spec.index, pinned, index)
        write_query_model(spec)
        index.prune(spec.index.keep_versions)
        _forget_keywords(spec.index, index)
    finally:
        index.close()
    write_pinned(folder, pinned)
    return {"index": pinned.state.model_dump(mode="json")}


def content_of(version: IndexVersion) -> str:
    """Returns the digest over a version's chunks; empty of one that no `index` task published."""
    return version.build.rpartition("@")[2] if "@" in version.build else ""


def _publish(
    spec: IndexSpec, folder: Folder, plan: Plan, failed: AbstractSet[int], index: OpenIndex
) -> PinnedVersion:
    info = index.info()
    if info is None:
        raise DataError(f"there is nothing to publish: no document of {plan.source} has a chunk")
    content = _digest(_ids(folder, plan, failed), info)
    before = [each for each in info.versions if not each.build.startswith(f"{plan.task_id}@")]
    newest = info.versions[-1] if info.versions else None
    if newest is not None and content_of(newest) == content:
        version = newest
    else:
        version = index.publish(f"{plan.task_id}@{content}", _ids(folder, plan, failed))
    unchanged = newest in before and version is newest
    removed = 0
    if before and not unchanged:
        gone = set(index.matching(before[-1].number, {}))
        gone.difference_update(_ids(folder, plan, failed))
        removed = len(gone)
    return PinnedVersion(
        engine=spec.index.engine,
        name=spec.index.name,
        url=spec.index.url,
        version=version.number,
        chunks=version.chunks,
        content=content,
        removed=removed,
    )


def _write_keywords(where: Index, pinned: PinnedVersion, index: OpenIndex) -> None:
    """Makes a version searchable by words, before any task can pin it."""
    if pinned.version is not None and pinned.version not in keyword_versions(where):
        write_keywords(where, pinned.version, index.texts(pinned.version))


def _forget_keywords(where: Index, index: OpenIndex) -> None:
    info = index.info()
    kept = {each.number for each in info.versions} if info is not None else set[int]()
    delete_keywords(where, [each for each in keyword_versions(where) if each not in kept])


def _failed(folder: Folder) -> AbstractSet[int]:
    """Returns the documents whose chunks stay out."""
    failed: set[int] = set()
    for row in read_rows(folder):
        if row.fault == BUDGET_FAULT:
            raise TerminalError(
                f"the budget left documents out, the first at row {row.index}: a version without "
                "them is not published"
            )
        if row.error is not None:
            failed.add(row.index)
    return failed


def _ids(folder: Folder, plan: Plan, failed: AbstractSet[int]) -> Iterator[str]:
    for row in read_input(folder, plan, 0, plan.rows):
        if row.index not in failed:
            yield from dict.fromkeys(chunk.id for chunk in row.chunks or ())


def _digest(ids: Iterator[str], info: IndexInfo) -> str:
    """Returns what is the same for the same chunks in any order, and for no others."""
    total = 0
    for each in ids:
        total += int.from_bytes(hashlib.blake2b(each.encode(), digest_size=16).digest())
    made = f"{total % _MODULUS:032x} {info.dimension} {info.metric} {info.model}"
    return hashlib.sha256(made.encode()).hexdigest()[:16]
