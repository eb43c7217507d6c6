"""RAG tasks: their templates can be checked, and not run yet."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import FileRef, Url
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import TaskType


class Qdrant(Block):
    """A Qdrant collection."""

    url: Annotated[str, Url()]
    """Where Qdrant listens."""

    api_key: SecretStr | None = None
    """Take it from the environment: `${QDRANT_API_KEY}`."""

    collection: str
    """The collection to search."""


class Embedding(Block):
    """The model that embeds queries."""

    model: Annotated[str, FileRef(anchored=False)]
    """A hub id."""


class Search(Block):
    """How passages are searched."""

    top_k: int = Field(default=5, ge=1, le=1000)
    """Passages per row."""


class RagSpec(RowSpec):
    """Finds passages for each row."""

    qdrant: Qdrant
    embedding: Embedding
    search: Search = Search()


RAG = TaskType(name="rag", spec=RagSpec, executor=None, kinds=("RetrievalTask",))
