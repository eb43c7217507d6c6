"""What an engine of indexes must do; every engine passes `tests/contract/test_index_engines.py`.

An index holds chunks with their vectors. What belongs together is a version: a number, and the set
of chunks that it consists of. Chunks that no version has yet are invisible to every search, so that
several workers add them in any order, more than once, and lose nothing when they are killed. Then
one transaction publishes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mloc_dagster.results import Passage
from mloc_dagster.schema import FilterValue, Index

Vectors = Any
"""A numpy array of float32, one row for each text."""


@dataclass(frozen=True, slots=True)
class IndexVersion:
    """A published version.

    Attributes:
        number: From 1; the newest is the highest.
        chunks: How many it has.
        build: What published it: a task's id.
        published_at: When, in ISO 8601.
    """

    number: int
    chunks: int
    build: str
    published_at: str


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index is.

    Attributes:
        name: Its name.
        engine: The engine's.
        metric: How near a chunk is to a query.
        dimension: Of its vectors.
        model: Which model made them, with its revision; empty where nobody said so.
        versions: Ascending; empty before the first, and of what mloc did not write.
        chunks: How many the newest version has; of what mloc did not write, all.
    """

    name: str
    engine: str
    metric: str
    dimension: int
    model: str
    versions: tuple[IndexVersion, ...]
    chunks: int


@dataclass(frozen=True, slots=True)
class Hit:
    """A chunk that was found.

    Attributes:
        passage: The chunk, without scores.
        score: How near it is by the index's metric: the higher, the nearer.
    """

    passage: Passage
    score: float


class OpenIndex(Protocol):
    """One index, opened; used from one thread at a time."""

    def info(self) -> IndexInfo | None:
        """Returns what the index is; None if there is no such index yet."""
        ...

    def create(self, dimension: int, model: str) -> None:
        """Makes the index if there is none.

        Raises:
            InputError: If there is one with another dimension, metric or model.
        """
        ...

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns which chunks it has a vector of, published or not."""
        ...

    def add(self, chunks: Sequence[Passage], vectors: Vectors) -> None:
        """Takes chunks with their vectors, invisibly; those it has already stay as they are."""
        ...

    def publish(self, build: str, ids: Iterable[str]) -> IndexVersion:
        """Makes a version of exactly these chunks, at once for every reader.

        Done twice for the same build, it returns what was made at first.

        Raises:
            DataError: If it has no vector of one of them.
        """
        ...

    def prune(self, keep: int) -> None:
        """Removes all but the newest versions, and chunks that no version has any more.

        Chunks that were added and not published stay for a day.
        """
        ...

    def search(
        self, version: int | None, vectors: Vectors, k: int, filter: Mapping[str, FilterValue]
    ) -> list[list[Hit]]:
        """Returns for each vector the nearest chunks of a version that fit the filter.

        Args:
            version: None of a collection that mloc did not write.
            vectors: One row for each query.
            k: How many for each at most; no fewer if there are as many that fit.
            filter: What the payload has to hold.
        """
        ...

    def fetch(self, version: int, ids: Sequence[str]) -> dict[str, Passage]:
        """Returns chunks of a version by their ids."""
        ...

    def texts(self, version: int) -> Iterable[Passage]:
        """Streams every chunk of a version in order of id, for keyword search."""
        ...

    def matching(self, version: int, filter: Mapping[str, FilterValue]) -> Collection[str]:
        """Returns the ids of a version's chunks that fit a filter."""
        ...

    def drop(self) -> None:
        """Removes the index with everything in it."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


class IndexOpener(Protocol):
    """Opens indexes of one engine; see `IndexEngineType.opener`. Made without arguments."""

    def open(self, index: Index) -> OpenIndex:
        """Opens an index, which need not exist.

        Raises:
            MissingExtraError: If the engine's library is not installed.
            InputError: If a secret is missing or the address is wrong.
            TransientError: If the server cannot be reached.
        """
        ...

    def names(self) -> list[str]:
        """Returns the indexes that mloc made where this engine keeps them by default."""
        ...
