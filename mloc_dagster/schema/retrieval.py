"""RAG and agent tasks."""

from __future__ import annotations

from pydantic import Field, SecretStr

from mloc_dagster.schema.base import Block


class Qdrant(Block):
    """A Qdrant collection."""

    url: str
    """Where Qdrant listens."""

    api_key: SecretStr | None = None
    """Take it from the environment: `${QDRANT_API_KEY}`."""

    collection: str
    """The collection to search."""


class Embedding(Block):
    """The model that embeds queries."""

    model: str
    """A hub id."""


class Search(Block):
    """How passages are searched."""

    top_k: int = Field(default=5, ge=1, le=1000)
    """Passages per row."""


class Agent(Block):
    """Limits of one agent run."""

    timeout: float = Field(default=300.0, gt=0)
    """Seconds one row may take."""

    max_steps: int = Field(default=20, ge=1)
    """Thoughts and tool calls of one row at most."""
