"""Indexes in LanceDB: a folder, or a bucket, of Lance tables; by default on the results store.

Of each index there are two tables: its chunks, and its versions. A version's changes to the chunks
are one commit, and one more row of the versions makes it exist (`index/intervals.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from itertools import batched
from typing import TYPE_CHECKING, Any

import msgspec

from mloc_dagster.errors import DataError, MissingExtraError
from mloc_dagster.index.chunk_columns import PASSAGE_COLUMNS, as_vectors
from mloc_dagster.index.filters import fits
from mloc_dagster.index.intervals import (
    STAGED_S,
    require_same,
    require_version,
    version_changes,
)
from mloc_dagster.index.lance_tables import (
    VERSIONS,
    about,
    among,
    chunk_rows,
    chunk_schema,
    connect,
    copied_rows,
    identity,
    in_version,
    index_names,
    insert,
    make_table,
    mark,
    open_table,
    passages_in,
    stored_chunks,
    table_names,
    version_rows,
    version_schema,
)
from mloc_dagster.index.pg_connection import build_lock
from mloc_dagster.index.protocol import Hit, IndexInfo, IndexVersion, Vectors
from mloc_dagster.results import Passage
from mloc_dagster.schema import FilterValue, Index

if TYPE_CHECKING:
    import pyarrow as pa

_EXACT_UP_TO = 50_000
"""Chunks that are compared one by one, which is fast enough without a graph."""

_IDS_AT_ONCE = 1_000
_LISTED_UP_TO = 2_000
"""Chunks that fit a filter that are named one by one in a search."""

_OLD_FILES = timedelta(days=1)
"""Readers of an older state of a table are done with it by then."""


class LancedbOpener:
    """Opens indexes in LanceDB. Implements `IndexOpener`."""

    def open(self, index: Index) -> LancedbIndex:
        """Opens an index, which need not exist."""
        return LancedbIndex(connect(index.url), index)

    def names(self) -> list[str]:
        """Returns the indexes on the results store."""
        if find_spec("lancedb") is None:
            raise MissingExtraError("an index in LanceDB", "rag")
        return index_names()


class LancedbIndex:
    """One index in LanceDB. Implements `OpenIndex`.

    Args:
        database: The connection.
        index: What it is.
    """

    def __init__(self, database: Any, index: Index) -> None:
        self._database = database
        self._index = index
        self._tables: dict[str, Any] = {}
        self._allowed: tuple[tuple[int, str], frozenset[str]] | None = None

    def info(self) -> IndexInfo | None:
        """Returns what the index is; None if there is no such index yet."""
        chunks = self._chunks()
        if chunks is None:
            return None
        versions = self._versions()
        return IndexInfo(
            name=self._index.name,
            engine="lancedb",
            versions=versions,
            chunks=versions[-1].chunks if versions else 0,
            **about(chunks),
        )

    def create(self, dimension: int, model: str) -> None:
        """Makes the index if there is none."""
        wanted = {"metric": self._index.metric, "dimension": dimension, "model": model}
        if self._chunks() is None:
            make_table(self._database, VERSIONS + self._index.name, version_schema())
            make_table(self._database, self._index.name, chunk_schema(wanted))
        there = identity(about(self._require()))
        require_same(self._index.name, there, identity(wanted))

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns which chunks it has a vector of, published or not."""
        table = self._require()
        found: set[str] = set()
        for some in batched(ids, _IDS_AT_ONCE):
            rows = table.search().where(among("id", some)).select(["id"]).to_arrow()
            found.update(rows["id"].to_pylist())
        return found

    def add(self, chunks: Sequence[Passage], vectors: Vectors) -> None:
        """Takes chunks with their vectors, invisibly; those it has already stay as they are."""
        table = self._require()
        array = as_vectors(vectors, len(chunks), about(table)["dimension"])
        places = {chunk.id: place for place, chunk in enumerate(chunks)}
        if places:
            once = list(places.values())
            rows = chunk_rows([chunks[place] for place in once], array[once], table.schema)
            # Of two that insert the same row at the same time, Lance lets both.
            with self._locked():
                insert(table, "key", rows)

    def publish(self, build: str, ids: Iterable[str]) -> IndexVersion:
        """Makes a version of exactly these chunks."""
        with self._locked():
            return self._publish(build, ids)

    def _publish(self, build: str, ids: Iterable[str]) -> IndexVersion:
        chunks, recorded = self._require(), self._records()
        versions = self._versions()
        for each in versions:
            if each.build == build:
                return each
        newest = self._newest_ever()
        wanted = set(ids)
        changes = version_changes(stored_chunks(chunks), wanted, newest)
        number = newest + 1
        copies = [
            rows
            for keys in batched(changes.copies, _IDS_AT_ONCE)
            for rows in [chunks.search().where(among("key", keys)).to_arrow()]
        ]
        for rows in copies:
            insert(chunks, "key", copied_rows(rows, number))
        if changes.marks:
            mark(chunks, changes.marks)
        version = IndexVersion(number, len(wanted), build, datetime.now(UTC).isoformat())
        insert(recorded, "number", version_rows(version))
        self._tidy(chunks, len(wanted))
        return version

    def prune(self, keep: int) -> None:
        """Removes all but the newest versions, and chunks that no version has any more."""
        chunks, recorded = self._require(), self._records()
        with self._locked():
            versions = self._versions()
            if len(versions) > keep:
                oldest = versions[-keep].number
                recorded.update(where=f"number < {oldest}", values={"pruned": True})
                chunks.delete(f"until <= {oldest}")
            chunks.delete(f"since IS NULL AND added_at < {time.time() - STAGED_S}")

    def search(
        self, version: int | None, vectors: Vectors, k: int, filter: Mapping[str, FilterValue]
    ) -> list[list[Hit]]:
        """Returns for each vector the nearest chunks of a version that fit the filter."""
        table = self._require()
        queries = as_vectors(vectors, None, about(table)["dimension"])
        there = self._version(version)
        where, allowed, total = in_version(there.number), None, there.chunks
        if filter:
            allowed = self._matching(there.number, filter)
            if len(allowed) <= _LISTED_UP_TO:
                where, total = f"{where} AND {among('id', allowed)}", len(allowed)
                allowed = None
        if not total or (allowed is not None and not allowed) or not len(queries):
            return [[] for _ in queries]
        enough = min(k, total if allowed is None else len(allowed))
        return self._nearest(table, queries, where, total, enough, allowed)

    def fetch(self, version: int, ids: Sequence[str]) -> dict[str, Passage]:
        """Returns chunks of a version by their ids."""
        table, there = self._require(), self._version(version)
        found: dict[str, Passage] = {}
        for some in batched(ids, _IDS_AT_ONCE):
            where = f"{in_version(there.number)} AND {among('id', some)}"
            rows = table.search().where(where).select(list(PASSAGE_COLUMNS)).to_arrow()
            found.update((each.id, each) for each in passages_in(rows))
        return found

    def texts(self, version: int) -> Iterator[Passage]:
        """Streams every chunk of a version in order of id."""
        table, there = self._require(), self._version(version)
        query = table.search().where(in_version(there.number)).select(["id"]).with_row_id(True)
        rows = query.to_arrow().sort_by("id")
        for some in batched(rows["_rowid"].to_pylist(), _IDS_AT_ONCE):
            taken = table.take_row_ids(some).select(list(PASSAGE_COLUMNS)).to_arrow()
            yield from passages_in(taken.sort_by("id"))

    def matching(self, version: int, filter: Mapping[str, FilterValue]) -> Collection[str]:
        """Returns the ids of a version's chunks that fit a filter."""
        return self._matching(self._version(version).number, filter)

    def drop(self) -> None:
        """Removes the index with everything in it."""
        for name in (self._index.name, VERSIONS + self._index.name):
            if name in table_names(self._database):
                self._database.drop_table(name)
        self._tables.clear()
        self._allowed = None

    def close(self) -> None:
        """Lets go of it."""
        self._tables.clear()

    def _locked(self) -> AbstractContextManager[None]:
        return build_lock(f"{self._database.uri} {self._index.name}")

    def _matching(self, version: int, filter: Mapping[str, FilterValue]) -> frozenset[str]:
        key = version, repr(sorted(filter.items(), key=lambda item: item[0]))
        if self._allowed is None or self._allowed[0] != key:
            query = self._require().search().where(in_version(version)).select(["id", "payload"])
            found = (
                id
                for batch in query.to_batches(batch_size=_IDS_AT_ONCE)
                for id, payload in zip(
                    batch["id"].to_pylist(), batch["payload"].to_pylist(), strict=True
                )
                if fits(msgspec.json.decode(payload) if payload else None, filter)
            )
            self._allowed = key, frozenset(found)
        return self._allowed[1]

    def _nearest(
        self,
        table: Any,
        queries: Any,
        where: str,
        total: int,
        enough: int,
        allowed: frozenset[str] | None,
    ) -> list[list[Hit]]:
        """Returns `enough` hits for each query; `allowed` is what the engine cannot select."""
        share = 1.0 if allowed is None else len(allowed) / total
        asked, exact = (
            min(total, int(enough / share * 1.5) if allowed is not None else enough),
            False,
        )
        while True:
            rows = self._query(table, queries, where, asked, exact=exact)
            hits = _hits(rows, len(queries), _score(about(table)["metric"]), allowed)
            if all(len(each) >= enough for each in hits) or (exact and asked >= total):
                return [each[:enough] for each in hits]
            # The graph may end early; looking at all of them does not.
            asked, exact = min(total, asked * 2), True

    def _query(self, table: Any, queries: Any, where: str, count: int, *, exact: bool) -> pa.Table:
        query = table.search(queries if len(queries) > 1 else queries[0])
        query = query.distance_type(about(table)["metric"]).where(where, prefilter=True)
        query = query.limit(count).select([*PASSAGE_COLUMNS, "_distance"])
        if exact:
            return query.bypass_vector_index().to_arrow()
        width = self._index.hnsw.ef_search or max(40, 2 * count)
        return query.ef(max(width, count)).to_arrow()

    def _tidy(self, chunks: Any, count: int) -> None:
        """Makes a table quick to search; what does not succeed now is done the next time."""
        from lancedb.index import HnswFlat

        chunks.optimize(cleanup_older_than=_OLD_FILES)
        if count > _EXACT_UP_TO and not chunks.list_indices():
            hnsw = self._index.hnsw
            config = HnswFlat(
                distance_type=about(chunks)["metric"],
                num_partitions=1,
                m=hnsw.m,
                ef_construction=hnsw.ef_construction,
            )
            chunks.create_index("vector", config=config)

    def _version(self, number: int | None) -> IndexVersion:
        versions = self._versions()
        if number is None:
            if not versions:
                raise DataError(f"the index {self._index.name!r} has no version yet")
            return versions[-1]
        return require_version(self._index.name, versions, number)

    def _versions(self) -> tuple[IndexVersion, ...]:
        table = self._table(VERSIONS + self._index.name)
        rows = [] if table is None else table.to_arrow().sort_by("number").to_pylist()
        return tuple(
            IndexVersion(row["number"], row["chunks"], row["build"], row["published_at"])
            for row in rows
            if not row["pruned"]
        )

    def _newest_ever(self) -> int:
        numbers = self._records().to_arrow()["number"].to_pylist()
        return max(numbers, default=0)

    def _chunks(self) -> Any | None:
        return self._table(self._index.name)

    def _require(self) -> Any:
        table = self._chunks()
        if table is None:
            raise DataError(f"there is no index {self._index.name!r} in {self._database.uri}")
        return table

    def _records(self) -> Any:
        return self._table(VERSIONS + self._index.name)

    def _table(self, name: str) -> Any:
        if name not in self._tables:
            table = open_table(self._database, name)
            if table is None:
                return None
            self._tables[name] = table
        return self._tables[name]


def _score(metric: str) -> Callable[[float], float]:
    if metric == "l2":
        return lambda distance: -(distance**0.5)
    return lambda distance: 1.0 - distance


def _hits(
    rows: pa.Table,
    queries: int,
    score: Callable[[float], float],
    allowed: frozenset[str] | None,
) -> list[list[Hit]]:
    hits: list[list[Hit]] = [[] for _ in range(queries)]
    query_of = rows["query_index"].to_pylist() if queries > 1 else [0] * len(rows)
    distances = rows["_distance"].to_pylist()
    for query, distance, passage in zip(query_of, distances, passages_in(rows), strict=True):
        if allowed is None or passage.id in allowed:
            hits[query].append(Hit(passage, score(distance)))
    return [sorted(each, key=lambda hit: (-hit.score, hit.passage.id)) for each in hits]
