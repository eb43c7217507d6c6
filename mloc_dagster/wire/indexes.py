"""Indexes, and what is found in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field

from mloc_dagster.schema import FilterValue, Metric, RetrievedItem
from mloc_dagster.wire.base import Reply, Wire


class IndexVersionView(Wire):
    """A version of an index."""

    number: int
    chunks: int
    task_id: str
    """The task that published it."""
    published_at: AwareDatetime


class IndexView(Wire):
    """An index."""

    name: str
    engine: str
    metric: Metric
    dimension: int
    """Of its vectors."""
    model: str
    """What made the vectors; empty where nobody said so."""
    chunks: int
    """Of the newest version."""
    versions: tuple[IndexVersionView, ...]
    """Ascending; none before the first, and of what mloc did not write."""


class IndexPage(Reply):
    """`GET /api/v1/indexes`."""

    count: int
    indexes: tuple[IndexView, ...]


class IndexReply(Reply):
    """`GET` and `DELETE /api/v1/indexes/{name}`."""

    index: IndexView


class IndexSearchRequest(Wire):
    """Body of `POST /api/v1/indexes/{name}/search`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    query: str = Field(min_length=1, max_length=20_000)
    mode: Literal["dense", "keyword", "hybrid"] = "dense"
    """By meaning, by words, or both."""
    top_k: int = Field(default=5, ge=1, le=1000)
    """Passages at most."""
    filter: Mapping[str, FilterValue] = Field(default_factory=dict, max_length=50)
    """What the payload of a passage has to hold, as in `search.filter` of a template."""
    version: int | None = Field(default=None, ge=1)
    """Which version; by default the newest."""
    engine: str | None = Field(default=None, max_length=100)
    """Whose index; needed where two engines have one of this name."""


class IndexSearchReply(Reply):
    """What was found, the best first."""

    name: str
    engine: str
    version: int | None = None
    """Which version was searched; null of what mloc did not write."""
    count: int
    passages: tuple[RetrievedItem, ...]
