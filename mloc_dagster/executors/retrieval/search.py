"""The executor of `retrieve` tasks: queries → vectors → chunks of one version of an index."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from typing import Any

import msgspec

from mloc_dagster.errors import InputError, TaskCancelled, TerminalError
from mloc_dagster.executors.base import Caller, ModelKey, ShardContext, ShardInput
from mloc_dagster.executors.calls import answer_call
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.protocol import Engine
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.executors.prompts import last_user_text
from mloc_dagster.executors.retrieval.embedder import (
    EmbeddingExecutor,
    check_model,
    embedding_of,
    vectors_name,
)
from mloc_dagster.executors.retrieval.fusion import fused, ranked
from mloc_dagster.executors.retrieval.pinned import PINNED_NAME, PinnedVersion
from mloc_dagster.executors.retrieval.preflight import chosen_version, searchable
from mloc_dagster.index import IndexInfo, OpenIndex, open_index, search_keywords
from mloc_dagster.results import InputRow, OutputRow, Passage, failed_row
from mloc_dagster.schema import ModelSpec, RetrieveSpec, Search

SEARCHED_AT_ONCE = 256
"""Queries that are searched for together."""

KEYWORDS = "keyword search"
"""What computes rows that no model takes part in."""

_DIGITS = 6
"""Of scores: the last bits of a vector depend on what was computed beside it."""


class RetrieveExecutor(EmbeddingExecutor):
    """Finds chunks for each row; by words alone it needs no model."""

    def model_key(self, spec: ModelSpec) -> ModelKey | None:
        """Returns the key of the embedding task's model; None where words alone are searched."""
        return None if _by_words_alone(spec) else super().model_key(spec)

    def load(self, spec: ModelSpec) -> Any:
        """Loads the model, where one is needed."""
        return None if _by_words_alone(spec) else super().load(spec)

    def unload(self, model: Engine | None) -> None:
        """Ends the engine, where there is one."""
        if model is not None:
            super().unload(model)

    def revision(self, model: Engine | None) -> str:
        """Returns which state of the model answers; empty where there is none."""
        return "" if model is None else super().revision(model)

    def run(  # pyright: ignore[reportIncompatibleMethodOverride]  (its specs are retrievals')
        self, shard: ShardInput, spec: RetrieveSpec, model: Engine | None, context: ShardContext
    ) -> None:
        """Finds chunks for every row of the shard, in the version that the plan has pinned.

        Raises:
            TaskCancelled: If the task was asked to stop.
            InputError: If the vectors of the index are those of another model.
            TerminalError: If the pinned version is gone.
            TransientError: If the engine or the index is lost and another attempt may help.
        """
        pinned = PinnedVersion.model_validate_json(shard.open_file(PINNED_NAME))
        index = open_index(spec.index)
        try:
            info = _checked(index, pinned)
            searcher = Searcher(index, pinned.version, spec)
            if model is None:
                context.log(f"{KEYWORDS} in version {pinned.version} of {pinned.name}")
                _search_words(shard, searcher, context)
                return
            check_model(pinned.name, info.model, vectors_name(spec, model))
            embedding = embedding_of(spec)
            reason = choose_engine(embedding).reason
            context.log(f"engine: {model.label} on {model.device}: {reason}")
            context.log(f"model: {model.name}, revision {self.revision(model)}")
            batch = _Batch(searcher, context.emit)
            answer_rows(shard, embedding, model, replace(context, emit=batch.add))
            batch.flush()
        finally:
            index.close()

    def answer(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, rows: Sequence[InputRow], spec: RetrieveSpec, model: Engine | None, caller: Caller
    ) -> Sequence[OutputRow]:
        """Finds chunks for the rows of a call, in the version that the spec names, or the newest.

        Raises:
            TaskCancelled: If the caller has gone.
            InputError: If there is no such index or version, or its vectors are another model's.
            TransientError: If the engine or the index is lost.
        """
        index = open_index(spec.index)
        try:
            info = searchable(spec.index, index.info())
            searcher = Searcher(index, chosen_version(spec, info).version, spec)
            done: dict[int, OutputRow] = {}
            batch = _Batch(
                searcher, lambda row: done.update({row.index: row}), by_words=model is None
            )
            if model is None:
                answered = [_without_model(row) for row in rows]
            else:
                check_model(info.name, info.model, vectors_name(spec, model))
                answered = answer_call(rows, embedding_of(spec), model, caller)
            for row in answered:
                batch.add(row)
            batch.flush()
            return [done[row.index] for row in rows]
        finally:
            index.close()


def _by_words_alone(spec: ModelSpec) -> bool:
    return isinstance(spec, RetrieveSpec) and spec.search.mode == "keyword"


def _checked(index: OpenIndex, pinned: PinnedVersion) -> IndexInfo:
    info = index.info()
    if info is None:
        raise TerminalError(f"the index {pinned.name!r} was removed after this task had begun")
    there = {each.number for each in info.versions}
    if pinned.version is not None and pinned.version not in there:
        raise TerminalError(
            f"version {pinned.version} of the index {pinned.name!r}, which this task searches, is "
            "gone: newer ones have taken its place. Run the template anew, and build the index "
            "with more keep_versions if searches take that long"
        )
    return info


def _search_words(shard: ShardInput, searcher: Searcher, context: ShardContext) -> None:
    batch = _Batch(searcher, context.emit, by_words=True)
    for rows in batched(shard.rows, SEARCHED_AT_ONCE):
        if context.cancelled():
            raise TaskCancelled("stopped between two searches")
        for row in rows:
            batch.add(_without_model(row))
        batch.flush()


def _without_model(row: InputRow) -> OutputRow:
    if row.error is not None:
        return failed_row(row, row.error, KEYWORDS)
    return OutputRow(row.index, row.prompt, custom_id=row.custom_id, engine=KEYWORDS)


class _Batch:
    """Collects rows with the vectors of their queries, and emits them with what is found."""

    def __init__(
        self, searcher: Searcher, emit: Callable[[OutputRow], None], *, by_words: bool = False
    ) -> None:
        self._searcher = searcher
        self._emit = emit
        self._by_words = by_words
        self._rows: list[OutputRow] = []

    def add(self, row: OutputRow) -> None:
        if row.error is not None:
            self._emit(row)
            return
        self._rows.append(row)
        if len(self._rows) >= SEARCHED_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return
        texts = [last_user_text(row.prompt) for row in rows]
        vectors = None if self._by_words else [row.embedding or [] for row in rows]
        found = self._searcher.search(texts, vectors)
        for row, passages in zip(rows, found, strict=True):
            self._emit(_with(row, passages))


def _with(row: OutputRow, passages: list[Passage]) -> OutputRow:
    best = passages[0].text if passages else ""
    return msgspec.structs.replace(row, embedding=None, output=best, retrieved=passages)


class Searcher:
    """Searches one version of an index as a template says.

    Args:
        index: The index.
        version: Which of its versions; None of a collection that mloc did not write.
        spec: How to search.
    """

    def __init__(self, index: OpenIndex, version: int | None, spec: RetrieveSpec) -> None:
        search = spec.search
        self._index = index
        self._version = version
        self._search: Search = search
        self._where = spec.index
        self._most = search.candidates if spec.passages == "candidates" else search.top_k
        self._allowed: Collection[str] | None = None
        if search.mode != "dense":
            if version is None:
                raise InputError(
                    f"search.mode {search.mode!r} needs an index that an index task has built, "
                    f"and {spec.index.name!r} is none: only dense search can be had there"
                )
            if search.filter:
                self._allowed = frozenset(index.matching(version, search.filter))

    def search(
        self, texts: Sequence[str], vectors: Sequence[Sequence[float]] | None
    ) -> list[list[Passage]]:
        """Returns for each query what is found, the best first.

        Args:
            texts: The queries.
            vectors: Theirs; None where words alone are searched.
        """
        if not texts:
            return []
        mode = self._search.mode
        k = self._most if mode != "hybrid" else max(self._search.candidates, self._most)
        passages: dict[str, Passage] = {}
        dense = self._dense(vectors, k, passages) if vectors is not None else None
        words = self._words(texts, k) if mode != "dense" else None
        self._fetch(words or (), passages)
        empty: list[dict[str, float]] = [{} for _ in texts]
        pairs = zip(dense or empty, words or empty, strict=True)
        return [self._of_query(near, fitting, passages) for near, fitting in pairs]

    def _dense(
        self, vectors: Sequence[Sequence[float]], k: int, passages: dict[str, Passage]
    ) -> list[dict[str, float]]:
        import numpy as np

        array: Any = np.asarray(vectors, dtype=np.float32)
        found = self._index.search(self._version, array, k, self._search.filter)
        for hits in found:
            passages.update((hit.passage.id, hit.passage) for hit in hits)
        return [{hit.passage.id: round(hit.score, _DIGITS) for hit in hits} for hits in found]

    def _words(self, texts: Sequence[str], k: int) -> list[dict[str, float]]:
        assert self._version is not None  # noqa: S101  the constructor has seen to it
        found = search_keywords(self._where, self._version, texts, k, self._allowed)
        return [{name: round(score, _DIGITS) for name, score in each} for each in found]

    def _fetch(self, found: Sequence[Mapping[str, float]], passages: dict[str, Passage]) -> None:
        missing = {name for each in found for name in each} - passages.keys()
        if missing and self._version is not None:
            passages |= self._index.fetch(self._version, sorted(missing))

    def _of_query(
        self,
        dense: Mapping[str, float],
        words: Mapping[str, float],
        passages: Mapping[str, Passage],
    ) -> list[Passage]:
        near, fitting = list(dense.items()), list(words.items())
        if self._search.mode == "hybrid":
            order = fused([near, fitting], self._search.fusion.rrf_k)
        else:
            order = ranked([*near, *fitting])
        return [
            msgspec.structs.replace(
                passages[name], score=score, dense=dense.get(name), keyword=words.get(name)
            )
            for name, score in order[: self._most]
        ]
