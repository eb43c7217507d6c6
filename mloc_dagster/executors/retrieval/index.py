"""The executor of `index` tasks: documents with chunks → vectors of new chunks in the index."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.engines.choice import choose_engine
from mloc_dagster.executors.engines.protocol import Engine
from mloc_dagster.executors.inference import answer_rows
from mloc_dagster.executors.retrieval.embedder import (
    EmbeddingExecutor,
    embedding_of,
    vectors_name,
)
from mloc_dagster.executors.retrieval.index_report import CHUNKS, EMBEDDED
from mloc_dagster.index import OpenIndex, open_index
from mloc_dagster.results import InputRow, OutputRow, Passage, failed_row
from mloc_dagster.schema import IndexSpec

WINDOW_DOCUMENTS = 256
"""Documents whose chunks are asked for at once."""

ADDED_AT_ONCE = 1024
"""Chunks that are handed to the index at once."""


class IndexExecutor(EmbeddingExecutor):
    """Embeds the chunks that the index does not have."""

    def run(  # pyright: ignore[reportIncompatibleMethodOverride]  (its specs are indexes')
        self, shard: ShardInput, spec: IndexSpec, model: Engine, context: ShardContext
    ) -> None:
        """Adds the chunks of every document of the shard; emits each when all of its are stored.

        Raises:
            TaskCancelled: If the task was asked to stop.
            InputError: If the index has vectors of another model, dimension or metric.
            TransientError: If the engine or the index is lost and another attempt may help.
        """
        embedding = embedding_of(spec)
        context.log(f"engine: {model.label} on {model.device}: {choose_engine(embedding).reason}")
        context.log(f"model: {model.name}, revision {self.revision(model)}")
        index = open_index(spec.index)
        try:
            store = _Store(index, vectors_name(spec, model))
            documents = _Documents(shard, store, model, context)
            try:
                rows = replace(shard, rows=documents.missing())
                around = replace(context, emit=documents.embedded, started=documents.started)
                answer_rows(rows, embedding, model, around)
            except TaskCancelled:
                documents.flush()  # what is computed is kept
                raise
            documents.flush()
        finally:
            index.close()


class _Store:
    """The index, made when the first vector tells its dimension.

    Args:
        index: The index.
        model: What makes the vectors.
    """

    def __init__(self, index: OpenIndex, model: str) -> None:
        self._index = index
        self._model = model
        self._dimension: int | None = None
        found = index.info()
        if found is not None:
            self._create(found.dimension)

    def known(self, ids: Sequence[str]) -> set[str]:
        return set() if self._dimension is None or not ids else self._index.known(ids)

    def add(self, chunks: Sequence[Passage], vectors: Sequence[Sequence[float]]) -> None:
        import numpy as np

        array: Any = np.asarray(vectors, dtype=np.float32)
        self._create(array.shape[1])
        self._index.add(chunks, array)

    def _create(self, dimension: int) -> None:
        if dimension != self._dimension:
            self._index.create(dimension, self._model)
            self._dimension = dimension


@dataclass(slots=True)
class _Document:
    """A document that is under way."""

    row: InputRow
    chunks: int
    began: float
    waiting: int = 0
    embedded: int = 0
    prompt_tokens: int = 0
    padding_tokens: int = 0
    engine_s: float = 0.0
    saved_s: float = 0.0
    error: str | None = None
    fault: str = ""

    @property
    def said(self) -> str:
        noun = "chunk" if self.chunks == 1 else "chunks"
        return f"{self.chunks} {noun}, {self.embedded} embedded"


class _Documents:
    """Takes documents apart, and puts what became of their chunks together."""

    def __init__(
        self, shard: ShardInput, store: _Store, model: Engine, context: ShardContext
    ) -> None:
        self._rows = iter(shard.rows)
        self._store = store
        self._model = model
        self._context = context
        self._waiting: dict[int, tuple[_Document, Passage]] = {}
        self._ready: list[tuple[_Document, Passage, list[float]]] = []
        self._numbers = 0
        self._counts = {CHUNKS: 0, EMBEDDED: 0}

    def missing(self) -> Iterator[InputRow]:
        """Yields each chunk that the index does not have as a row to embed."""
        while window := list(islice(self._rows, WINDOW_DOCUMENTS)):
            ids = [chunk.id for row in window for chunk in row.chunks or ()]
            known = self._store.known(ids)
            for row in window:
                yield from self._missing(row, known)

    def _missing(self, row: InputRow, known: set[str]) -> Iterator[InputRow]:
        if row.error is not None:
            self._context.emit(failed_row(row, row.error, self._model.label))
            return
        chunks = row.chunks or []
        # A document may hold the same chunk twice, and another shard's worker may have been here.
        new = {chunk.id: chunk for chunk in chunks if chunk.id not in known}
        document = _Document(row, len(chunks), time.monotonic(), waiting=len(new))
        self._count(len(chunks) - len(new), 0)
        if not new:
            self._finish(document)
        for chunk in new.values():
            number, self._numbers = self._numbers, self._numbers + 1
            self._waiting[number] = (document, chunk)
            yield InputRow(number, chunk.text)

    def started(self, numbers: Sequence[int]) -> None:
        """Hears which chunks are computed now; the documents are those of the shard."""
        found = (self._waiting[each][0].row.index for each in numbers if each in self._waiting)
        self._context.started(list(dict.fromkeys(found)))

    def embedded(self, row: OutputRow) -> None:
        """Takes what became of a chunk."""
        document, chunk = self._waiting.pop(row.index)
        document.prompt_tokens += row.prompt_tokens
        document.padding_tokens += row.padding_tokens
        document.engine_s += row.engine_s
        document.saved_s += row.saved_s
        if row.error is not None or row.embedding is None:
            document.error = document.error or f"chunk {chunk.id}: {row.error}"
            document.fault = document.fault or row.fault
            self._settle(document)
            return
        self._ready.append((document, chunk, row.embedding))
        self._count(1, 1)
        if len(self._ready) >= ADDED_AT_ONCE:
            self.flush()

    def _count(self, chunks: int, embedded: int) -> None:
        """Says how many chunks are done with by now: the index had them, or they are embedded."""
        self._counts = {
            CHUNKS: self._counts[CHUNKS] + chunks,
            EMBEDDED: self._counts[EMBEDDED] + embedded,
        }
        self._context.count(self._counts)

    def flush(self) -> None:
        """Hands what is computed to the index, and emits the documents that are whole."""
        ready, self._ready = self._ready, []
        if not ready:
            return
        self._store.add([chunk for _, chunk, _ in ready], [vector for _, _, vector in ready])
        for document, _, _ in ready:
            document.embedded += 1
            self._settle(document)

    def _settle(self, document: _Document) -> None:
        document.waiting -= 1
        if not document.waiting:
            self._finish(document)

    def _finish(self, document: _Document) -> None:
        counts = {CHUNKS: document.chunks, EMBEDDED: document.embedded}
        failed = document.error is not None
        self._context.emit(
            OutputRow(
                index=document.row.index,
                prompt=document.row.prompt,
                output="" if failed else document.said,
                finish_reason="error" if failed else "stop",
                error=document.error,
                fault=document.fault,
                prompt_tokens=document.prompt_tokens,
                padding_tokens=document.padding_tokens,
                engine_s=document.engine_s,
                saved_s=document.saved_s,
                latency_s=time.monotonic() - document.began,
                engine=self._model.label,
                custom_id=document.row.custom_id,
                counts=counts,
            )
        )
