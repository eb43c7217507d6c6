"""The task type `rag`: one template that stands for several tasks, as far as its blocks ask.

chunks → index → what is found → what is found in a better order → answers → what a judge says of
them. The last one has the template's name; each is an asset of its own, on workers of its own.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, cast

from pydantic import Field, SecretStr, model_validator

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.data import InferenceData
from mloc_dagster.schema.evaluation import JUDGED_METRICS, RowEvaluation
from mloc_dagster.schema.index import Index, Search
from mloc_dagster.schema.inference import Inference, Pooling, Reranking
from mloc_dagster.schema.judge import JudgeInference, Judging
from mloc_dagster.schema.markers import FileRef, Url
from mloc_dagster.schema.model import Model
from mloc_dagster.schema.resources import Parallel, Resources
from mloc_dagster.schema.retrieval import (
    Answering,
    Chunking,
    Documents,
    RetrieveResult,
)
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import Part, TaskType


class _WithModel(Block):
    """A model of one of the tasks, and what the workers of that task need."""

    model: Model | Annotated[str, FileRef(anchored=False)]
    """A model as elsewhere, or its hub id alone."""

    resources: Resources | None = None
    """What its workers need; by default as the task."""


class Corpus(Block):
    """The documents of an index."""

    source: Documents
    chunk: Chunking = Chunking()
    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of documents that may be unreadable."""

    resources: Resources | None = None
    """What its workers need; by default as the task."""

    parallel: Parallel | None = None
    """How it is cut into shards; by default as the task."""


class Embedding(_WithModel):
    """The model that turns chunks and queries into vectors."""

    query_instruction: str | None = None
    """Put before each query, and not before chunks, as some models want it."""

    pooling: Pooling = Pooling()


class Rerank(_WithModel, Reranking):
    """The model that puts what is found in a better order."""


class Generate(_WithModel, Answering):
    """The model that answers."""

    inference: Inference = Inference()


class Judge(_WithModel, Judging):
    """The model that judges the answers."""

    inference: JudgeInference = JudgeInference()


class RagEvaluation(RowEvaluation):
    """How passages and answers are scored once all are there."""

    judge: Judge | None = None
    """A model that says which statements of an answer its passages support."""

    @model_validator(mode="after")
    def _needs_its_judge(self) -> Self:
        if self.judge is not None and not {each.type for each in self.row_metrics} & JUDGED_METRICS:
            known = " or ".join(sorted(JUDGED_METRICS))
            raise ValueError(f"judge: none of the metrics needs one; add {known}, or leave it out")
        return self


class Qdrant(Block):
    """A collection at Qdrant."""

    url: Annotated[str, Url(database=True)]
    """Where Qdrant listens."""

    api_key: SecretStr | None = None
    """Take it from the environment: `${QDRANT_API_KEY}`."""

    collection: Name
    """The collection to search."""


class RagSpec(RowSpec):
    """Finds passages for each row, and answers by them."""

    query: str | None = None
    """The one thing to look for; or give `data` with one query a row."""

    # One of the two is there; after validation it is `data`.
    data: InferenceData | None = None  # pyright: ignore[reportIncompatibleVariableOverride]

    corpus: Corpus | None = None
    """The documents of the index; left out, an index is searched that exists."""

    qdrant: Qdrant | None = None
    """An existing collection at Qdrant, as earlier versions called `index`."""

    # One of the two is there; after validation it is `index`.
    index: Index | None = None
    embedding: Embedding
    search: Search = Search()
    rerank: Rerank | None = None
    """Left out, what is found stays in the order of the search."""

    generate: Generate | None = None
    """Left out, what is found is the result."""

    evaluation: RagEvaluation | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    reuse: bool = False
    """Take vectors and answers from earlier tasks where model, prompt and options are the same."""

    @model_validator(mode="before")
    @classmethod
    def _one_row(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        given = cast("dict[str, Any]", value)
        if (given.get("query") is None) == (given.get("data") is None):
            raise ValueError("give either query or data")
        if given.get("data") is None:
            given = {**given, "data": {"type": "list", "items": [given["query"]]}}
        if (given.get("index") is None) == (given.get("qdrant") is None):
            raise ValueError("give index: where the chunks are")
        return given


_INDEX = {
    "index": "index",
    "index.url": ("index.url", "qdrant.url"),
    "index.api_key": ("index.api_key", "qdrant.api_key"),
    "index.name": ("index.name", "qdrant.collection"),
}
_QDRANT = {"index.engine": ("qdrant", "qdrant")}

RAG = TaskType(
    name="rag",
    spec=RagSpec,
    executor=None,
    kinds=("RetrievalTask",),
    exclusive=(frozenset({"query", "data"}), frozenset({"qdrant", "index"})),
    result=RetrieveResult,
    parts=(
        Part(
            "chunks",
            "chunk",
            {
                "data": "corpus.source",
                "chunk": "corpus.chunk",
                "chunk.error_budget": ("corpus.error_budget", "corpus.chunk.error_budget"),
                "chunk.tokenizer": ("corpus.chunk.tokenizer", "embedding.model.source"),
                "resources": "corpus.resources",
                "parallel": "corpus.parallel",
            },
            where="corpus",
        ),
        Part(
            "index",
            "index",
            {
                "model": "embedding.model",
                "pooling": "embedding.pooling",
                "query_instruction": "embedding.query_instruction",
                **_INDEX,
                "resources": "embedding.resources",
                "parallel": "corpus.parallel",
            },
            gives=_QDRANT,
            where="corpus",
            rows_of=("chunks",),
        ),
        Part(
            "found",
            "retrieve",
            {
                "data": "data",
                "model": "embedding.model",
                "pooling": "embedding.pooling",
                "pooling.instruction": (
                    "embedding.query_instruction",
                    "embedding.pooling.instruction",
                ),
                **_INDEX,
                "search": "search",
                "resources": "embedding.resources",
            },
            gives={**_QDRANT, "passages": ("rerank", "candidates")},
            after="index",
        ),
        Part(
            "reranked",
            "rerank",
            {
                "model": "rerank.model",
                "rerank": "rerank",
                "resources": "rerank.resources",
            },
            where="rerank",
            rows_of=("found",),
        ),
        Part(
            "answers",
            "answer",
            {
                "model": "generate.model",
                "inference": "generate.inference",
                "answer": "generate",
                "resources": "generate.resources",
            },
            where="generate",
            rows_of=("reranked", "found"),
        ),
        Part(
            "judged",
            "judge",
            {
                "model": "evaluation.judge.model",
                "inference": "evaluation.judge.inference",
                "judge": "evaluation.judge",
                "resources": "evaluation.judge.resources",
            },
            where="evaluation.judge",
            rows_of=("answers",),
        ),
    ),
)
