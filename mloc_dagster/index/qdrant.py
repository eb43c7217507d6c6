"""Indexes in Qdrant: collections that mloc writes, and any other one to search.

Beside a collection that mloc writes there is one of its versions. A point's `since` and `until` are
its interval (`index/intervals.py`). Filters are applied to what Qdrant finds, so that they mean
what they mean elsewhere; more is fetched until enough fits.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cache
from itertools import batched
from typing import Any

import msgspec

from mloc_dagster.errors import DataError, InputError, MissingExtraError, TransientError
from mloc_dagster.index.chunk_columns import as_vectors
from mloc_dagster.index.filters import fits
from mloc_dagster.index.intervals import (
    STAGED_S,
    StoredChunk,
    require_same,
    require_version,
    version_changes,
)
from mloc_dagster.index.pg_connection import build_lock
from mloc_dagster.index.protocol import Hit, IndexInfo, IndexVersion, Vectors
from mloc_dagster.results import Passage
from mloc_dagster.schema import FilterValue, Index

_LOCAL = "path:"
"""What a URL begins with that is a folder: Qdrant's local mode, for tests and one process."""

_POINTS_AT_ONCE = 256
_DISTANCES = {"cosine": "Cosine", "dot": "Dot", "l2": "Euclid"}
_TEXTS = ("text", "content", "page_content", "document")
_KEYS = uuid.UUID("6d6c6f63-0000-5000-8000-000000000000")


class QdrantOpener:
    """Opens collections of Qdrant. Implements `IndexOpener`."""

    def open(self, index: Index) -> QdrantIndex:
        """Opens a collection, which need not exist."""
        try:
            import qdrant_client
        except ImportError as error:
            raise MissingExtraError("an index in Qdrant", "rag") from error
        if index.url is None:
            raise InputError("Qdrant needs url: where its server listens")
        if index.url.startswith(_LOCAL):
            return QdrantIndex(_local(index.url.removeprefix(_LOCAL)), index)
        key = None if index.api_key is None else index.api_key.get_secret_value()
        client = qdrant_client.QdrantClient(url=index.url, api_key=key, check_compatibility=False)
        try:
            client.collection_exists(index.name)
        except Exception as error:
            if "401" in str(error) or "403" in str(error):
                raise InputError(f"Qdrant at {index.url} refuses the api_key") from error
            raise TransientError(f"Qdrant at {index.url} does not answer: {error}") from error
        return QdrantIndex(client, index)

    def names(self) -> list[str]:
        """Returns nothing: Qdrant has no place by default."""
        return []


class QdrantIndex:
    """One collection of Qdrant. Implements `OpenIndex`.

    Args:
        client: Qdrant's client.
        index: What it is.
    """

    def __init__(self, client: Any, index: Index) -> None:
        self._client = client
        self._index = index
        self._record = f"{index.name}.mloc"

    def info(self) -> IndexInfo | None:
        """Returns what the collection is; None if there is no such collection yet."""
        if not self._client.collection_exists(self._index.name):
            return None
        dimension, metric, _ = self._vectors()
        about = self._about()
        if about is None:
            count = self._client.count(self._index.name, exact=True).count
            return IndexInfo(self._index.name, "qdrant", metric, dimension, "", (), count)
        versions = self._versions()
        return IndexInfo(
            name=self._index.name,
            engine="qdrant",
            metric=metric,
            dimension=dimension,
            model=about["model"],
            versions=versions,
            chunks=versions[-1].chunks if versions else 0,
        )

    def create(self, dimension: int, model: str) -> None:
        """Makes the collection if there is none."""
        from qdrant_client import models

        exists = self._client.collection_exists
        if exists(self._index.name) and self._about() is None:
            raise InputError(
                f"mloc did not write the collection {self._index.name!r}, and does not change it: "
                "give the index another name"
            )
        if not exists(self._index.name):
            small = models.VectorParams(size=1, distance=models.Distance.DOT)
            if not exists(self._record):
                self._client.create_collection(self._record, vectors_config=small)
            about = models.PointStruct(id=0, vector=[1.0], payload={"model": model})
            self._client.upsert(self._record, [about], wait=True)
            distance = models.Distance(_DISTANCES[self._index.metric])
            hnsw = models.HnswConfigDiff(
                m=self._index.hnsw.m, ef_construct=self._index.hnsw.ef_construction
            )
            self._client.create_collection(
                self._index.name,
                vectors_config=models.VectorParams(size=dimension, distance=distance),
                hnsw_config=hnsw,
            )
        there, metric, _ = self._vectors()
        known = (self._about() or {}).get("model", "")
        wanted = dimension, self._index.metric, model
        require_same(self._index.name, (there, metric, known), wanted)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Returns which chunks it has a vector of, published or not."""
        self._require()
        found: set[str] = set()
        for some in batched(ids, _POINTS_AT_ONCE):
            points = self._client.retrieve(self._index.name, [_point(each) for each in some])
            found.update(point.payload["id"] for point in points)
        return found

    def add(self, chunks: Sequence[Passage], vectors: Vectors) -> None:
        """Takes chunks with their vectors, invisibly; those it has already stay as they are."""
        from qdrant_client import models

        self._require()
        array = as_vectors(vectors, len(chunks), self._vectors()[0])
        # A build that publishes one of them meanwhile would lose it again.
        with self._locked():
            known = self.known([each.id for each in chunks])
            fresh = {c.id: place for place, c in enumerate(chunks) if c.id not in known}
            for places in batched(fresh.values(), _POINTS_AT_ONCE):
                points = [
                    models.PointStruct(
                        id=_point(chunks[each].id),
                        vector=array[each].tolist(),
                        payload={**msgspec.to_builtins(chunks[each]), "added_at": time.time()},
                    )
                    for each in places
                ]
                self._client.upsert(self._index.name, points, wait=True)

    def publish(self, build: str, ids: Iterable[str]) -> IndexVersion:
        """Makes a version of exactly these chunks."""
        from qdrant_client import models

        self._require()
        with self._locked():
            recorded = self._recorded()
            for each, pruned in recorded:
                if each.build == build and not pruned:
                    return each
            newest = max((each.number for each, _ in recorded), default=0)
            wanted, number = set(ids), newest + 1
            changes = version_changes(self._stored(), wanted, newest)
            for keys in batched(changes.copies, _POINTS_AT_ONCE):
                self._copy(keys, number)
            groups: dict[tuple[int | None, int | None], list[str]] = {}
            for key, marks in changes.marks.items():
                groups.setdefault(marks, []).append(key)
            for (since, until), keys in groups.items():
                for some in batched(keys, _POINTS_AT_ONCE):
                    payload = {"since": since, "until": until}
                    self._client.set_payload(
                        self._index.name, payload, points=list(some), wait=True
                    )
            version = IndexVersion(number, len(wanted), build, datetime.now(UTC).isoformat())
            payload = {**msgspec.to_builtins(version), "pruned": False}
            record = models.PointStruct(id=number, vector=[1.0], payload=payload)
            self._client.upsert(self._record, [record], wait=True)
        return version

    def prune(self, keep: int) -> None:
        """Removes all but the newest versions, and chunks that no version has any more."""
        self._require()
        with self._locked():
            versions = self._versions()
            oldest = versions[-keep].number if len(versions) > keep else 0
            gone = [each.number for each in versions if each.number < oldest]
            if gone:
                self._client.set_payload(self._record, {"pruned": True}, points=gone, wait=True)
            limit = time.time() - STAGED_S
            old = [
                point.id
                for point in self._scroll(["since", "until", "added_at"])
                if (point.payload.get("until") or oldest + 1) <= oldest
                or (point.payload.get("since") is None and point.payload["added_at"] < limit)
            ]
            for some in batched(old, _POINTS_AT_ONCE):
                self._client.delete(self._index.name, list(some), wait=True)

    def search(
        self, version: int | None, vectors: Vectors, k: int, filter: Mapping[str, FilterValue]
    ) -> list[list[Hit]]:
        """Returns for each vector the nearest chunks that fit the filter."""
        self._require(foreign=version is None)
        dimension, metric, using = self._vectors()
        queries = as_vectors(vectors, None, dimension)
        ours = self._about() is not None
        if ours:
            version = self._version(version)
        total = self._client.count(self._index.name, exact=True).count
        asked = min(total, 4 * k if filter else k)
        while asked and len(queries):
            answers = self._query(queries, asked, using, version if ours else None)
            hits: list[list[Hit]] = [
                [
                    Hit(passage, -point.score if metric == "l2" else point.score)
                    for point in answer.points
                    for passage in [_passage(point, ours=ours)]
                    if fits(passage.payload, filter)
                ]
                for answer in answers
            ]
            if asked >= total or all(len(each) >= k for each in hits):
                for each in hits:
                    each.sort(key=lambda hit: (-hit.score, hit.passage.id))
                return [each[:k] for each in hits]
            asked = min(total, 4 * asked)
        return [[] for _ in queries]

    def fetch(self, version: int, ids: Sequence[str]) -> dict[str, Passage]:
        """Returns chunks of a version by their ids."""
        wanted = set(ids)
        return {each.id: each for each in self.texts(version) if each.id in wanted}

    def texts(self, version: int) -> Iterator[Passage]:
        """Streams every chunk of a version in order of id."""
        self._require()
        number = self._version(version)
        there = [
            (point.payload["id"], point.id)
            for point in self._scroll(["id", "since", "until"])
            if _holds(point.payload, number)
        ]
        for some in batched(sorted(there), _POINTS_AT_ONCE):
            points = self._client.retrieve(self._index.name, [key for _, key in some])
            found = [_passage(point, ours=True) for point in points]
            yield from sorted(found, key=lambda passage: passage.id)

    def matching(self, version: int, filter: Mapping[str, FilterValue]) -> Collection[str]:
        """Returns the ids of a version's chunks that fit a filter."""
        self._require()
        number = self._version(version)
        return [
            point.payload["id"]
            for point in self._scroll(["id", "since", "until", "payload"])
            if _holds(point.payload, number) and fits(point.payload.get("payload"), filter)
        ]

    def drop(self) -> None:
        """Removes the index with everything in it; of another's collection it removes nothing."""
        if self._client.collection_exists(self._record):
            self._client.delete_collection(self._index.name)
            self._client.delete_collection(self._record)

    def close(self) -> None:
        """Lets go of it."""
        if not (self._index.url or "").startswith(_LOCAL):
            self._client.close()

    def _locked(self) -> AbstractContextManager[None]:
        return build_lock(f"{self._index.url} {self._index.name}")

    def _query(self, queries: Any, count: int, using: str | None, version: int | None) -> Any:
        from qdrant_client import models

        condition = None
        if version is not None:
            field = models.FieldCondition
            condition = models.Filter(
                must=[field(key="since", range=models.Range(lte=version))],
                must_not=[field(key="until", range=models.Range(lte=version))],
            )
        params = None
        if not (self._index.url or "").startswith(_LOCAL):  # it compares all of them
            width = self._index.hnsw.ef_search or max(40, 2 * count)
            params = models.SearchParams(hnsw_ef=width)
        requests = [
            models.QueryRequest(
                query=query.tolist(),
                using=using,
                limit=count,
                filter=condition,
                with_payload=True,
                params=params,
            )
            for query in queries
        ]
        return self._client.query_batch_points(self._index.name, requests)

    def _copy(self, keys: Sequence[str], number: int) -> None:
        from qdrant_client import models

        points = self._client.retrieve(self._index.name, list(keys), with_vectors=True)
        copies = [
            models.PointStruct(
                id=_point(f"{point.payload['id']}\n{number}"),
                vector=point.vector,
                payload={**point.payload, "since": number, "until": None},
            )
            for point in points
        ]
        self._client.upsert(self._index.name, copies, wait=True)

    def _vectors(self) -> tuple[int, str, str | None]:
        """Returns the dimension, the metric, and the name of the vectors if they have one."""
        found = self._client.get_collection(self._index.name).config.params.vectors
        name = None
        if isinstance(found, dict):
            if len(found) != 1:
                names = ", ".join(sorted(found)) or "none"
                raise InputError(
                    f"the collection {self._index.name!r} has several vectors for each point "
                    f"({names}): mloc searches collections with one"
                )
            ((name, found),) = found.items()
        metrics = {value: key for key, value in _DISTANCES.items()}
        if found.distance not in metrics:
            raise InputError(
                f"the collection {self._index.name!r} has the metric {found.distance}, which mloc "
                f"does not know; it knows: {', '.join(sorted(metrics))}"
            )
        return found.size, metrics[found.distance], name

    def _require(self, *, foreign: bool = False) -> None:
        if not self._client.collection_exists(self._index.name):
            raise DataError(f"there is no collection {self._index.name!r} in this Qdrant")
        if not foreign and self._about() is None:
            raise DataError(f"mloc did not write the collection {self._index.name!r}")

    def _about(self) -> dict[str, Any] | None:
        if not self._client.collection_exists(self._record):
            return None
        found = self._client.retrieve(self._record, [0])
        return found[0].payload if found else None

    def _recorded(self) -> list[tuple[IndexVersion, bool]]:
        points, _ = self._client.scroll(self._record, limit=100_000)
        rows = [point.payload for point in points if point.id != 0]
        found = [(msgspec.convert(row, IndexVersion), row["pruned"]) for row in rows]
        return sorted(found, key=lambda each: each[0].number)

    def _versions(self) -> tuple[IndexVersion, ...]:
        return tuple(each for each, pruned in self._recorded() if not pruned)

    def _version(self, number: int | None) -> int:
        versions = self._versions()
        if number is None and versions:
            return versions[-1].number
        return require_version(self._index.name, versions, number or 0).number

    def _stored(self) -> Iterator[StoredChunk]:
        for point in self._scroll(["id", "since", "until"]):
            known = point.payload
            yield StoredChunk(point.id, known["id"], known.get("since"), known.get("until"))

    def _scroll(self, fields: list[str]) -> Iterator[Any]:
        offset = None
        while True:
            points, offset = self._client.scroll(
                self._index.name, limit=_POINTS_AT_ONCE, offset=offset, with_payload=fields
            )
            yield from points
            if offset is None:
                return


@cache
def _local(folder: str) -> Any:
    from qdrant_client import QdrantClient

    return QdrantClient(path=folder)  # it lets no second client in


def _point(key: str) -> str:
    return str(uuid.uuid5(_KEYS, key))


def _holds(payload: Mapping[str, Any], number: int) -> bool:
    since, until = payload.get("since"), payload.get("until")
    return since is not None and since <= number and (until is None or until > number)


def _passage(point: Any, *, ours: bool) -> Passage:
    payload = dict(point.payload or {})
    if ours:
        return msgspec.convert(
            {key: value for key, value in payload.items() if key in Passage.__struct_fields__},
            Passage,
        )
    text = next((payload[key] for key in _TEXTS if isinstance(payload.get(key), str)), "")
    return Passage(id=str(point.id), text=text, payload=payload)
