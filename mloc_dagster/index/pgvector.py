"""Indexes in PostgreSQL with pgvector: mloc's own server, or any by its URL.

Of each index there is a table of chunks. A chunk is in every version from `since` on and before
`until`; `since` is missing as long as no version has it. Publishing is one transaction.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from itertools import batched
from typing import TYPE_CHECKING, Any

import msgspec

from mloc_dagster.errors import DataError
from mloc_dagster.home import INDEX_SCHEMA, stack_layout
from mloc_dagster.index.chunk_columns import as_vectors, passage_of
from mloc_dagster.index.filters import jsonpath
from mloc_dagster.index.intervals import (
    STAGED_S,
    require_all,
    require_same,
    require_version,
)
from mloc_dagster.index.pg_connection import connect, locked, make_tables, transaction
from mloc_dagster.index.pg_copy import COPY_COLUMNS, copy_bytes
from mloc_dagster.index.protocol import Hit, IndexInfo, IndexVersion, Vectors
from mloc_dagster.schema import FilterValue, Index
from mloc_dagster.settings import settings

if TYPE_CHECKING:
    from mloc_dagster.results import Passage

_PASSAGE = "id, text, document, start_at, end_at, page, heading, payload::text"

_OPERATORS = {
    "cosine": ("<=>", "cosine_ops"),
    "dot": ("<#>", "ip_ops"),
    "l2": ("<->", "l2_ops"),
}

_VECTOR_UP_TO = 2_000
_HALF_UP_TO = 4_000
"""Dimensions that graphs of `vector` and of `halfvec` take; longer vectors are compared exactly."""

_BUILD_BYTES = 512 << 20
_LEAST_BUILD_BYTES = 64 << 20
_ROWS_AT_ONCE = 1_000
_MOST_LOOKED_AT = 1_000


class PgvectorOpener:
    """Opens indexes in PostgreSQL. Implements `IndexOpener`."""

    def open(self, index: Index) -> PgvectorIndex:
        """Opens an index, which need not exist."""
        return PgvectorIndex(connect(index.url), index)

    def names(self) -> list[str]:
        """Returns the indexes in mloc's own PostgreSQL; none is started for it where none was."""
        if settings().postgres_url is None and not stack_layout().postgres.exists():
            return []
        connection = connect(None)
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT to_regclass(%s)", [f"{INDEX_SCHEMA}.indexes"])
                if cursor.fetchone() == (None,):
                    return []
                cursor.execute(f"SELECT name FROM {INDEX_SCHEMA}.indexes ORDER BY name")
                return [name for (name,) in cursor]
        finally:
            connection.close()


class PgvectorIndex:
    """One index in PostgreSQL. Implements `OpenIndex`.

    Args:
        connection: For this index alone.
        index: What it is.
    """

    def __init__(self, connection: Any, index: Index) -> None:
        self._connection = connection
        self._index = index
        self._looked_at = 0

    def info(self) -> IndexInfo | None:
        """Returns what the index is; None if there is no such index yet."""
        found = self._about()
        if found is None:
            return None
        versions = self._versions(found.id)
        return IndexInfo(
            name=self._index.name,
            engine="pgvector",
            metric=found.metric,
            dimension=found.dimension,
            model=found.model,
            versions=versions,
            chunks=versions[-1].chunks if versions else 0,
        )

    def create(self, dimension: int, model: str) -> None:
        """Makes the index if there is none."""
        make_tables(self._connection)
        metric = self._index.metric
        with locked(self._connection, 0):
            if self._about() is None:
                self._make(dimension, metric, model)
        found = self._require()
        there = found.dimension, found.metric, found.model
        require_same(self._index.name, there, (dimension, metric, model))

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns which chunks it has a vector of, published or not."""
        table = self._require().table
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT id FROM {table} WHERE id = ANY(%s)", [list(ids)])
            return {id for (id,) in cursor}

    def add(self, chunks: Sequence[Passage], vectors: Vectors) -> None:
        """Takes chunks with their vectors, invisibly; those it has already stay as they are."""
        import psycopg2

        found = self._require()
        array = as_vectors(vectors, len(chunks), found.dimension)
        places = list({chunk.id: place for place, chunk in enumerate(chunks)}.values())
        if not places:
            return
        data = copy_bytes([chunks[each] for each in places], array[places], half=found.half)
        try:
            self._copy(found.table, data)
        except psycopg2.errors.UniqueViolation:
            data.seek(0)
            self._copy_new(found.table, data)

    def publish(self, build: str, ids: Iterable[str]) -> IndexVersion:
        """Makes a version of exactly these chunks."""
        found = self._require()
        with locked(self._connection, found.id):
            for each in self._versions(found.id):
                if each.build == build:
                    return each
            with transaction(self._connection) as cursor:
                version = _publish(cursor, found, build, ids)
            # Only now what the transaction replaced is dead, and need not go into the graph.
            self._make_graph(found, version.chunks)
        return version

    def prune(self, keep: int) -> None:
        """Removes all but the newest versions, and chunks that no version has any more."""
        found = self._require()
        with locked(self._connection, found.id), transaction(self._connection) as cursor:
            versions = self._versions(found.id)
            if len(versions) > keep:
                oldest = versions[-keep].number
                cursor.execute(
                    f"UPDATE {INDEX_SCHEMA}.versions SET pruned = true"
                    " WHERE index_id = %s AND number < %s",
                    (found.id, oldest),
                )
                cursor.execute(f"DELETE FROM {found.table} WHERE until <= %s", [oldest])
            cursor.execute(
                f"DELETE FROM {found.table} WHERE since IS NULL"
                " AND added_at < now() - make_interval(secs => %s)",
                [STAGED_S],
            )

    def search(
        self, version: int | None, vectors: Vectors, k: int, filter: Mapping[str, FilterValue]
    ) -> list[list[Hit]]:
        """Returns for each vector the nearest chunks of a version that fit the filter."""
        found = self._require()
        queries = as_vectors(vectors, None, found.dimension)
        number = self._newest(found) if version is None else version
        if not len(queries):
            return []
        hits = self._nearest(found, number, queries, k, filter)
        if any(len(each) < k for each in hits):
            there = require_version(self._index.name, self._versions(found.id), number)
            if filter or any(len(each) < min(k, there.chunks) for each in hits):
                # The graph may end early; looking at all of them does not.
                with transaction(self._connection) as cursor:
                    cursor.execute("SET LOCAL enable_indexscan = off")
                    hits = self._nearest(found, number, queries, k, filter)
        return hits

    def fetch(self, version: int, ids: Sequence[str]) -> dict[str, Passage]:
        """Returns chunks of a version by their ids."""
        found = self._require()
        require_version(self._index.name, self._versions(found.id), version)
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {_PASSAGE} FROM {found.table} WHERE {_IN_VERSION} AND id = ANY(%s)",
                (version, version, list(ids)),
            )
            return {row[0]: passage_of(row) for row in cursor}

    def texts(self, version: int) -> Iterator[Passage]:
        """Streams every chunk of a version in order of id."""
        found = self._require()
        require_version(self._index.name, self._versions(found.id), version)
        last = ""
        while True:
            with self._connection.cursor() as cursor:
                cursor.execute(
                    f"SELECT {_PASSAGE} FROM {found.table} WHERE {_IN_VERSION} AND id > %s"
                    " ORDER BY id LIMIT %s",
                    (version, version, last, _ROWS_AT_ONCE),
                )
                rows = cursor.fetchall()
            yield from (passage_of(row) for row in rows)
            if len(rows) < _ROWS_AT_ONCE:
                return
            last = rows[-1][0]

    def matching(self, version: int, filter: Mapping[str, FilterValue]) -> Collection[str]:
        """Returns the ids of a version's chunks that fit a filter."""
        found = self._require()
        require_version(self._index.name, self._versions(found.id), version)
        condition, values = _condition(filter)
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"SELECT id FROM {found.table} WHERE {_IN_VERSION}{condition}",
                (version, version, *values),
            )
            return [id for (id,) in cursor]

    def drop(self) -> None:
        """Removes the index with everything in it."""
        found = self._about()
        if found is None:
            return
        with transaction(self._connection) as cursor:
            cursor.execute(f"DROP TABLE IF EXISTS {found.table}")
            cursor.execute(f"DELETE FROM {INDEX_SCHEMA}.indexes WHERE id = %s", [found.id])

    def close(self) -> None:
        """Lets go of it."""
        self._connection.close()

    def _about(self) -> _About | None:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", [f"{INDEX_SCHEMA}.indexes"])
            if cursor.fetchone() == (None,):
                return None
            cursor.execute(
                f"SELECT id, dimension, metric, model FROM {INDEX_SCHEMA}.indexes WHERE name = %s",
                [self._index.name],
            )
            row = cursor.fetchone()
        return None if row is None else _About(*row)

    def _require(self) -> _About:
        found = self._about()
        if found is None:
            raise DataError(f"there is no index {self._index.name!r} in this PostgreSQL")
        return found

    def _make(self, dimension: int, metric: str, model: str) -> None:
        with transaction(self._connection) as cursor:
            cursor.execute(
                f"INSERT INTO {INDEX_SCHEMA}.indexes (name, dimension, metric, model)"
                " VALUES (%s, %s, %s, %s) RETURNING id",
                (self._index.name, dimension, metric, model),
            )
            made = _About(cursor.fetchone()[0], dimension, metric, model)
            cursor.execute(f"""
                CREATE TABLE {made.table} (
                    id text COLLATE "C" NOT NULL,
                    text text NOT NULL,
                    document text NOT NULL,
                    start_at bigint NOT NULL,
                    end_at bigint NOT NULL,
                    page integer,
                    heading text[] NOT NULL,
                    payload jsonb,
                    since integer,
                    until integer,
                    added_at timestamptz NOT NULL DEFAULT now(),
                    vector {made.type}({dimension}) NOT NULL,
                    UNIQUE NULLS NOT DISTINCT (id, until)
                )""")

    def _copy(self, table: str, data: io.BytesIO) -> None:
        with self._connection.cursor() as cursor:
            cursor.copy_expert(f"COPY {table} ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)", data)

    def _copy_new(self, table: str, data: io.BytesIO) -> None:
        with transaction(self._connection) as cursor:
            cursor.execute(
                f"CREATE TEMP TABLE added ON COMMIT DROP AS SELECT {COPY_COLUMNS} FROM {table}"
                " WITH NO DATA"
            )
            cursor.copy_expert(f"COPY added ({COPY_COLUMNS}) FROM STDIN (FORMAT binary)", data)
            cursor.execute(
                f"INSERT INTO {table} ({COPY_COLUMNS}) SELECT {COPY_COLUMNS} FROM added"
                " ON CONFLICT (id, until) DO NOTHING"
            )

    def _make_graph(self, found: _About, chunks: int) -> None:
        if found.dimension > _HALF_UP_TO:
            return
        hnsw = self._index.hnsw
        _, operators = _OPERATORS[found.metric]
        width = found.dimension * (2 if found.half else 4) + 24 * hnsw.m
        memory = min(max(2 * chunks * width, _LEAST_BUILD_BYTES), _BUILD_BYTES)
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT to_regclass(%s)", [found.graph])
            if cursor.fetchone() != (None,):
                return
            cursor.execute(f"SET maintenance_work_mem = '{memory >> 10}kB'")
            name = found.graph.rpartition(".")[2]
            cursor.execute(
                f"CREATE INDEX {name} ON {found.table} USING hnsw (vector {found.type}_{operators})"
                f" WITH (m = {hnsw.m}, ef_construction = {hnsw.ef_construction})"
            )
            cursor.execute("RESET maintenance_work_mem")

    def _nearest(
        self, found: _About, version: int, queries: Any, k: int, filter: Mapping[str, FilterValue]
    ) -> list[list[Hit]]:
        operator, _ = _OPERATORS[found.metric]
        condition, values = _condition(filter)
        texts = ["[" + ",".join(map(str, query.tolist())) + "]" for query in queries]
        with self._connection.cursor() as cursor:
            wanted = min(self._index.hnsw.ef_search or max(40, 2 * k), _MOST_LOOKED_AT)
            if wanted != self._looked_at:
                cursor.execute(f"SET hnsw.ef_search = {wanted}")
                self._looked_at = wanted
            cursor.execute(
                f"""
                SELECT q.place, c.distance, {_PASSAGE}
                FROM unnest(%s::{found.type}[]) WITH ORDINALITY AS q (vector, place)
                CROSS JOIN LATERAL (
                    SELECT *, t.vector {operator} q.vector AS distance FROM {found.table} t
                    WHERE {_IN_VERSION}{condition}
                    AND EXISTS (SELECT FROM {INDEX_SCHEMA}.versions
                        WHERE index_id = %s AND number = %s AND NOT pruned)
                    ORDER BY t.vector {operator} q.vector LIMIT %s
                ) c""",
                (texts, version, version, *values, found.id, version, k),
            )
            hits: list[list[Hit]] = [[] for _ in queries]
            for place, distance, *row in cursor:
                score = 1.0 - distance if found.metric == "cosine" else -distance
                hits[place - 1].append(Hit(passage_of(row), score))
        return [sorted(each, key=lambda hit: (-hit.score, hit.passage.id)) for each in hits]

    def _newest(self, found: _About) -> int:
        versions = self._versions(found.id)
        if not versions:
            raise DataError(f"the index {self._index.name!r} has no version yet")
        return versions[-1].number

    def _versions(self, index_id: int) -> tuple[IndexVersion, ...]:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT number, chunks, build, published_at"
                f" FROM {INDEX_SCHEMA}.versions WHERE index_id = %s AND NOT pruned ORDER BY number",
                [index_id],
            )
            return tuple(_version(row) for row in cursor)


class _About(msgspec.Struct, frozen=True):
    """The row of an index."""

    id: int
    dimension: int
    metric: str
    model: str

    @property
    def table(self) -> str:
        """Its chunks."""
        return f"{INDEX_SCHEMA}.chunks_{self.id}"

    @property
    def graph(self) -> str:
        """The index of their vectors."""
        return f"{self.table}_hnsw"

    @property
    def half(self) -> bool:
        """Whether its values have two bytes each."""
        return _VECTOR_UP_TO < self.dimension <= _HALF_UP_TO

    @property
    def type(self) -> str:
        """The type of its vectors."""
        return "halfvec" if self.half else "vector"


_IN_VERSION = "since <= %s AND (until IS NULL OR until > %s)"


def _publish(cursor: Any, found: _About, build: str, ids: Iterable[str]) -> IndexVersion:
    table = found.table
    cursor.execute('CREATE TEMP TABLE wanted (id text COLLATE "C") ON COMMIT DROP')
    for some in batched(ids, 10 * _ROWS_AT_ONCE):
        lines = "".join(f"{_copy_text(each)}\n" for each in some)
        cursor.copy_expert("COPY wanted FROM STDIN", io.StringIO(lines))
    cursor.execute("ANALYZE wanted")
    cursor.execute(
        f"SELECT id FROM wanted w WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.id = w.id)"
    )
    require_all({id for (id,) in cursor})
    cursor.execute(
        f"SELECT coalesce(max(number), 0) + 1 FROM {INDEX_SCHEMA}.versions WHERE index_id = %s",
        [found.id],
    )
    number = cursor.fetchone()[0]
    cursor.execute(
        f"UPDATE {table} t SET until = %s WHERE t.until IS NULL AND t.since IS NOT NULL"
        " AND NOT EXISTS (SELECT FROM wanted w WHERE w.id = t.id)",
        [number],
    )
    cursor.execute(
        f"UPDATE {table} t SET since = %s WHERE t.until IS NULL AND t.since IS NULL"
        " AND EXISTS (SELECT FROM wanted w WHERE w.id = t.id)",
        [number],
    )
    # What had left comes back: its vector is there.
    cursor.execute(
        f"INSERT INTO {table} ({COPY_COLUMNS}, since)"
        f" SELECT DISTINCT ON (t.id) {COPY_COLUMNS}, %s FROM {table} t WHERE t.until IS NOT NULL"
        " AND EXISTS (SELECT FROM wanted w WHERE w.id = t.id) AND NOT EXISTS"
        f" (SELECT FROM {table} o WHERE o.id = t.id AND o.until IS NULL)",
        [number],
    )
    cursor.execute(
        f"INSERT INTO {INDEX_SCHEMA}.versions (index_id, number, chunks, build)"
        " SELECT %s, %s, count(DISTINCT id), %s FROM wanted"
        " RETURNING number, chunks, build, published_at",
        (found.id, number, build),
    )
    version = _version(cursor.fetchone())
    cursor.execute(f"ANALYZE {table}")
    return version


def _version(row: Sequence[Any]) -> IndexVersion:
    number, chunks, build, published_at = row
    return IndexVersion(number, chunks, build, published_at.astimezone(UTC).isoformat())


def _condition(filter: Mapping[str, FilterValue]) -> tuple[str, list[str]]:
    """Returns what the payload of a chunk has to hold, and the values that stand in it."""
    tests: list[str] = []
    values: list[str] = []
    place = "coalesce(payload, '{}')"
    for key, wanted in filter.items():
        found, refused, variables = jsonpath(key, wanted)
        for path in found:
            tests.append(f" AND jsonb_path_exists({place}, %s::jsonpath, %s::jsonb)")
            values += [path, msgspec.json.encode(variables).decode()]
        if refused is not None:
            tests.append(f" AND NOT jsonb_path_exists({place}, %s::jsonpath, %s::jsonb)")
            values += [refused, msgspec.json.encode(variables).decode()]
    return "".join(tests), values


def _copy_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")
    return escaped.replace("\r", "\\r")
