"""An index, and how it is searched: blocks that tasks and tools of agents share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from mloc_dagster.errors import MlocError
from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.index_engine import find_index_engine
from mloc_dagster.schema.markers import Url

Metric = Literal["cosine", "dot", "l2"]
"""How near two vectors are: the cosine of their angle, their product, or their distance."""


class Hnsw(Block):
    """The graph by which near vectors are found."""

    m: int = Field(default=16, ge=2, le=100)
    """Neighbours of a vector in the graph."""

    ef_construction: int = Field(default=64, ge=4, le=1000)
    """How many are looked at where a vector is put in."""

    ef_search: int | None = Field(default=None, ge=1, le=1000)
    """How many are looked at in a search; by default at least 40, and twice what is asked for."""


class Index(Block):
    """Where chunks and their vectors are."""

    engine: str = "pgvector"
    """`pgvector`, `lancedb`, `qdrant`, or a registered one."""

    name: Name
    """The index; at Qdrant the collection."""

    url: Annotated[str | None, Url(database=True)] = None
    """Where it is: of `pgvector` a PostgreSQL (by default mloc's own), of `lancedb` a folder (by
    default on the results store), of `qdrant` the server."""

    api_key: SecretStr | None = None
    """Take it from the environment: `${QDRANT_API_KEY}`."""

    metric: Metric = "cosine"
    """How near a chunk is to a query."""

    hnsw: Hnsw = Hnsw()

    keep_versions: int = Field(default=3, ge=1)
    """Versions that are kept; older ones leave when a new one is published."""

    def is_same(self, other: Index) -> bool:
        """Tells whether another block means this index."""
        return (self.engine, self.name, self.url) == (other.engine, other.name, other.url)

    @field_validator("engine")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            find_index_engine(value)
        except MlocError as error:  # pydantic passes ValueErrors on with their place, no others
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits_its_engine(self) -> Self:
        engine = find_index_engine(self.engine)
        if self.metric not in engine.metrics:
            known = ", ".join(sorted(engine.metrics))
            raise ValueError(f"{engine.label} has no metric {self.metric!r}, only {known}")
        if self.url is None and not engine.local:
            raise ValueError(f"{engine.label} needs url: where its server listens")
        return self


class Range(Block):
    """What a number or text of the payload has to be."""

    gt: float | str | None = None
    gte: float | str | None = None
    lt: float | str | None = None
    lte: float | str | None = None
    ne: bool | float | str | None = None


FilterValue = bool | int | float | str | tuple[bool | int | float | str, ...] | Range
"""One value, several of which one has to be there, or a range."""


class Fusion(Block):
    """How two orders become one: reciprocal rank fusion."""

    rrf_k: int = Field(default=60, ge=1)
    """What is added to each rank: the higher, the less the first places count."""


class Search(Block):
    """How chunks are searched."""

    mode: Literal["dense", "keyword", "hybrid"] = "dense"
    """By meaning, by words, or both."""

    candidates: int = Field(default=50, ge=1, le=10_000)
    """Found by each of the two ways before they are fused; handed to `rerank`."""

    fusion: Fusion = Fusion()

    top_k: int = Field(default=5, ge=1, le=1000)
    """Chunks per row."""

    version: int | None = Field(default=None, ge=1)
    """Which version of an index that exists; by default the newest when the task is planned."""

    filter: Mapping[str, FilterValue] = Field(default_factory=dict)
    """What the payload of a chunk has to hold: `{lang: zh, year: {gte: 2020}, kind: [a, b]}`."""
