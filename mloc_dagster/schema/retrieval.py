"""The tasks of retrieval: chunks of documents, an index of them, what is found, answers.

Each is a task type of its own; a template of `rag` (`schema/rag.py`) stands for several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, JsonValue, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.data import DatasetData, UpstreamData
from mloc_dagster.schema.engine_type import Ability
from mloc_dagster.schema.index import Index, Search
from mloc_dagster.schema.inference import Pooling, Reranking
from mloc_dagster.schema.markers import FileRef
from mloc_dagster.schema.model import ModelSource
from mloc_dagster.schema.result import ResultItem, RowsResult, Usage
from mloc_dagster.schema.split import SplitText
from mloc_dagster.schema.task import InferenceSpec, ModelSpec, RowSpec


class Documents(Block):
    """Where documents come from: files that are one each, or the rows of a dataset."""

    type: Literal["dataset"] = "dataset"
    url: Annotated[str, FileRef()] = Field(min_length=1)
    """Files, each a document (`docs/**/*.md`; also `.markdown`, `.html`, `.htm`, `.txt`, `.pdf`);
    or jsonl, json, csv or parquet files, or a hub id, each row a document."""

    id_column: str = "path"
    """The column that names a document; of files the path below the part of `url` without `*`."""

    text_column: str = "text"
    """The column with a document's text; of files what stands in them."""

    keep: Literal["all"] | tuple[str, ...] | Literal[False] = "all"
    """Columns that chunks bring along as their `payload`, for filters and answers: `all` but the
    text and those of bytes, or these, or `false` for none."""

    name: str | None = None
    """The hub dataset's configuration."""

    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""

    split: SplitText = "train"
    """Which documents, as for `DatasetData`."""

    only: Mapping[str, str] = Field(default_factory=dict)
    """Only the documents that hold these values, by column, as for `DatasetData`."""


class Chunking(Block):
    """How documents are cut."""

    by: Literal["tokens", "characters"] = "tokens"
    """What `size` and `overlap` count; tokens are those of the model that embeds."""

    size: int = Field(default=400, ge=1)
    """The most that a chunk has. A model that embeds reads no more than its own limit."""

    overlap: int = Field(default=40, ge=0)
    """How much of a chunk stands in the one before, at most."""

    respect: Literal["auto", "markdown", "text"] = "auto"
    """Where chunks end if they can: at headings, lists and code blocks, or at paragraphs and
    sentences. `auto`: `markdown` for Markdown and HTML."""

    tokenizer: ModelSource | None = None
    """The model whose tokens are counted; by default the one that embeds."""

    error_budget: float = Field(default=0.01, ge=0, le=1)
    """Share of documents that may be unreadable."""

    @model_validator(mode="after")
    def _overlaps_less_than_all(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap: expected less than size, which is {self.size}")
        return self


class ChunkSpec(RowSpec):
    """Cuts each document into chunks."""

    block_name: ClassVar[str] = "chunk"
    leaves: ClassVar[tuple[str, ...]] = ("chunks",)

    data: Documents  # pyright: ignore[reportIncompatibleVariableOverride]
    chunk: Chunking = Chunking()

    @model_validator(mode="after")
    def _can_count(self) -> Self:
        if self.chunk.by == "characters":
            return self
        source = self.chunk.tokenizer
        if source is None or source.type == "openai":
            raise ValueError(
                "chunk.tokenizer: by tokens needs a model whose tokenizer can be loaded"
                + (", and an endpoint's cannot" if source is not None else "")
                + "; or give by: characters"
            )
        return self


class IndexSpec(ModelSpec):
    """Embeds the chunks that an index does not have yet, and publishes a version of it."""

    ability: ClassVar[Ability] = "embed"
    block_name: ClassVar[str] = "pooling"
    takes: ClassVar[frozenset[str]] = frozenset({"chunks"})
    deciding: ClassVar[frozenset[str]] = frozenset({"index"})

    data: UpstreamData  # pyright: ignore[reportIncompatibleVariableOverride]
    pooling: Pooling = Pooling()
    query_instruction: str | None = None
    """Put before the queries of searches by the index's name, instead of `pooling.instruction`."""

    index: Index


class RetrieveSpec(ModelSpec):
    """Finds chunks of an index for each row."""

    ability: ClassVar[Ability] = "embed"
    block_name: ClassVar[str] = "pooling"
    leaves: ClassVar[tuple[str, ...]] = ("retrieved",)
    deciding: ClassVar[frozenset[str]] = frozenset({"index", "search"})

    pooling: Pooling = Pooling()
    index: Index
    search: Search = Search()
    passages: Literal["top_k", "candidates"] = "top_k"
    """How many a row has: `search.top_k`, or all `search.candidates` for a task behind it that
    puts them in a better order."""


class RerankSpec(ModelSpec):
    """Puts the texts that belong to each row in order, by a model that reads both together."""

    ability: ClassVar[Ability] = "score"
    block_name: ClassVar[str] = "rerank"
    takes: ClassVar[frozenset[str]] = frozenset({"retrieved"})
    leaves: ClassVar[tuple[str, ...]] = ("retrieved",)

    rerank: Reranking = Reranking()

    @model_validator(mode="after")
    def _has_texts(self) -> Self:
        if isinstance(self.data, UpstreamData):
            if self.rerank.documents_column is not None:
                raise ValueError(
                    "rerank.documents_column is for rows of a dataset: those of an earlier task "
                    "bring along what was found for them"
                )
        elif not isinstance(self.data, DatasetData):
            raise ValueError(  # noqa: TRY004
                f"data of type {self.data.type!r} has no texts to put in order: expected rows of "
                "an earlier task (upstream), or a dataset with rerank.documents_column"
            )
        elif self.rerank.documents_column is None:
            raise ValueError(
                "give rerank.documents_column: the column with the texts of each row, which are "
                "put in order"
            )
        return self

    @property
    def rows_are_alike(self) -> bool:
        """A score depends on the row and its texts alone."""
        return True


class Answering(Block):
    """What an answer is made of."""

    instructions: str | None = None
    """Stand before the passages; by default the library's in `prompts/answer/`. Where a model may
    abstain, they tell it to write `No answer found.`"""

    max_context_tokens: int = Field(default=3000, ge=1)
    """Tokens of passages at most, and at most what the model has room for: the last ones are left
    out, whole, and the row says how many. A first one that is too long by itself is cut."""

    citations: Literal["required", "optional", "none"] = "required"
    """Whether answers name their passages, as `[1]`."""

    abstain: bool = True
    """Whether the model may say that the passages do not hold the answer."""


class AnswerSpec(InferenceSpec):
    """Answers each row by the passages that were found for it."""

    takes: ClassVar[frozenset[str]] = frozenset({"retrieved"})
    leaves: ClassVar[tuple[str, ...]] = (
        *("retrieved", "citations", "abstained", "citation_error", "left_out", "cut_characters"),
    )
    deciding: ClassVar[frozenset[str]] = frozenset({"answer"})

    data: UpstreamData  # pyright: ignore[reportIncompatibleVariableOverride]
    answer: Answering = Answering()


class RetrievedItem(Block):
    """A chunk that was found."""

    id: str
    text: str = ""
    document: str = ""
    start: int = 0
    end: int = 0
    """Where it stands in the document's text, in characters."""

    page: int | None = None
    heading: tuple[str, ...] = ()
    """The headings above it, the outermost first."""

    score: float | None = None
    """By what it stands where it does: the higher, the better."""

    dense: float | None = None
    """How near it is by meaning."""

    keyword: float | None = None
    """How well its words fit."""

    rerank: float | None = None
    """What the model says that reads both."""

    payload: Mapping[str, JsonValue] | None = None
    """What the document brought along."""


class ChunkItem(ResultItem):
    """A document's text, and what it was cut into."""

    chunks: tuple[RetrievedItem, ...] | None = None


class ChunkUsage(Usage):
    """What a task of chunks took."""

    documents: int
    """Those that could be read."""

    chunks: int
    characters: int
    """Of the documents' texts."""


class ChunkResult(RowsResult):
    """The result of `chunk` tasks: a row for each document, whose text is the `output`."""

    items: tuple[ChunkItem, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    usage: ChunkUsage  # pyright: ignore[reportIncompatibleVariableOverride]


class CitationItem(Block):
    """A place where an answer names a passage."""

    n: int
    """The passage's number in the prompt, from 1."""

    chunk_id: str
    document: str
    start: int
    end: int
    score: float | None = None


class RetrieveItem(ResultItem):
    """What was found for a row, and the answer."""

    retrieved: tuple[RetrievedItem, ...] | None = None
    citations: tuple[CitationItem, ...] | None = None
    abstained: bool | None = None
    """Whether the model said that the passages do not hold the answer."""

    citation_error: str | None = None
    """Why the answer's citations are not what they should be."""

    left_out: int = 0
    """Passages, the last ones, that `max_context_tokens` left no room for."""

    cut_characters: int = 0
    """How much of the only passage's end there was no room for."""


class StatementItem(Block):
    """One thing that an answer says."""

    text: str
    supported: bool
    """Whether a passage says so."""

    passage: int | None = None
    """Which one, by its number in the answer's prompt, from 1."""


class JudgementItem(Block):
    """What a judge says of an answer."""

    score: float | None = None
    """The share of its statements that are supported."""

    statements: tuple[StatementItem, ...] = ()
    reason: str = ""
    """Why, in the judge's words."""

    output: str = ""
    """All that the judge wrote."""

    error: str | None = None
    """Why there is no score."""


class JudgeItem(RetrieveItem):
    """An answer, and what the judge says of it."""

    judgement: JudgementItem | None = None
    """None of a row that is not judged."""


class FoundPoint(Block):
    """A chunk that was found, in the form of earlier versions."""

    id: str
    score: float
    payload: Mapping[str, JsonValue]


class FoundQuery(Block):
    """What was found for a row, in the form of earlier versions."""

    index: int
    query: str
    items: tuple[FoundPoint, ...]


class IndexState(Block):
    """The version of an index that was searched, or published."""

    engine: str
    name: str
    version: int | None = None
    """None of a collection that mloc did not write."""

    chunks: int


class RetrieveUsage(Usage):
    """What a task of retrieval took."""

    num_queries: int
    total_results: int


class RetrieveResult(RowsResult):
    """The result of `retrieve`, `rerank` and `answer` tasks, and so of `rag`."""

    items: tuple[RetrieveItem, ...]  # pyright: ignore[reportIncompatibleVariableOverride]
    usage: RetrieveUsage  # pyright: ignore[reportIncompatibleVariableOverride]
    queries: tuple[FoundQuery, ...] = ()
    """The first 1,000 rows."""

    index: IndexState | None = None


class JudgeResult(RetrieveResult):
    """The result of `judge` tasks."""

    items: tuple[JudgeItem, ...]  # pyright: ignore[reportIncompatibleVariableOverride]


class IndexResult(RowsResult):
    """The result of `index` tasks: a row for each document."""

    index: IndexState | None = None
