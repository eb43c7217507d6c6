"""Where a task's rows come from: the `data` blocks, and what an address of data means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import FileRef
from mloc_dagster.schema.split import SplitText
from mloc_dagster.schema.tools import MessageToolCall

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
COMPRESSIONS = (".gz", ".zst")

DOCUMENT_TYPES: Mapping[str, str] = MappingProxyType(
    {
        ".md": "text/markdown",
        ".markdown": "text/markdown",
        ".html": "text/html",
        ".htm": "text/html",
        ".txt": "text/plain",
        ".pdf": "application/pdf",
    }
)
"""The media type of files that are a document each, by suffix."""

_GLOB = re.compile(r"[*?\[]")


def names_files(url: str) -> bool:
    """Whether the address can mean nothing but files; any other may be a folder or a hub id."""
    return (
        "://" in url
        or url.startswith((".", "/", "~"))
        or is_glob(url)
        or data_suffix(url) is not None
        or document_type(url) is not None
    )


def written_as_file(text: str) -> bool:
    """Whether a text that may be anything is written as a file of this machine."""
    return (
        text.startswith(("/", "./", "../", "~/"))
        or data_suffix(text) is not None
        or document_type(text) is not None
    )


def is_glob(path: str) -> bool:
    """Whether a path stands for every file that its pattern fits."""
    return _GLOB.search(path) is not None


def data_suffix(path: str) -> str | None:
    """Returns the format's suffix without the compression's, or None if it isn't one of ours."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        name = name.with_suffix("")
    return name.suffix if name.suffix in SUFFIXES else None


def document_type(path: str) -> str | None:
    """Returns the media type of a file that is a document; None of any other."""
    return DOCUMENT_TYPES.get(PurePosixPath(path.lower()).suffix)


def hub_only(name: str, field: str, url: str) -> str:
    """Returns what is wrong with a field of hub datasets beside an address of files.

    Args:
        name: The field, such as `revision`.
        field: How the template calls the address.
        url: The address.
    """
    return (
        f"{name} selects within a hub dataset, but {field} {url!r} is a file; remove it "
        "(or set it to null)"
    )


OnUpstreamError = Literal["skip", "empty", "fail"]


class TextPart(Block):
    """A piece of text in a chat message."""

    type: Literal["text"]
    text: str


class ImageUrl(Block):
    """Where an image is."""

    url: Annotated[str, FileRef()] = Field(min_length=1)
    """A path (relative to the template), an http(s) or fsspec URL, or a `data:image/…` URI."""


class ImagePart(Block):
    """An image in a chat message."""

    type: Literal["image_url"]
    image_url: ImageUrl


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(Block):
    """One message of a chat row."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""

    content: str | tuple[ContentPart, ...] | None = None
    """What is said: text, or parts of text and images in OpenAI's form; may be missing where the
    assistant calls tools."""

    name: str | None = None
    """Who of several with the same role."""

    tool_calls: tuple[MessageToolCall, ...] = ()
    """What the assistant called."""

    tool_call_id: str | None = None
    """Which call a `tool` message answers."""

    reasoning: str | None = None
    """What the assistant thought before."""

    @model_validator(mode="after")
    def _says_something(self) -> ChatMessage:
        if self.content is None and not self.tool_calls:
            raise ValueError("a message needs content, or tool_calls")
        return self


class MessageTemplate(Block):
    """One message of the chat that each row of a dataset becomes."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""

    content: str
    """What is said; columns stand in it as `{question}`."""


class ListData(Block):
    """Rows written into the template."""

    type: Literal["list"]
    items: tuple[str | tuple[ChatMessage, ...], ...] = Field(min_length=1)
    """Prompts: each a string, or a list of chat messages."""

    shuffle: bool = False
    """Shuffle the items."""

    seed: int = 42
    """Seed of the shuffle."""


class DatasetData(Block):
    """Rows of a dataset: on the Hugging Face hub, or files on any fsspec URL."""

    type: Literal["dataset"]
    url: Annotated[str, FileRef()] = Field(min_length=1)
    """A hub id (`openai/gsm8k`), or a path or URL of jsonl, json, csv, parquet or txt files."""

    name: str | None = None
    """The hub dataset's configuration, such as `main`."""

    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""

    split: SplitText = "train"
    """Which rows: `train`, `train[:200]`, `train[10%:20%]`, `[-50:]`, `train[:5]+test[:5]`."""

    only: Mapping[str, str] = Field(default_factory=dict)
    """Only the rows of the slice that hold these values, by column: `{lang: en}`. What is no text
    is compared as JSON writes it."""

    column: str | None = None
    """The column with the prompt. It may be left out where there is one column, or where one of
    them, and no more, is called `prompt`, `question`, `text`, `input` or `messages`."""

    prompt: str | None = None
    """The prompt, made of several columns: `"{question}\\n\\nContext: {context}"`."""

    messages: tuple[MessageTemplate, ...] = ()
    """The prompt as chat messages made of columns; `image_columns` go into the first user's."""

    keep: Literal["all"] | tuple[str, ...] | Literal[False] = "all"
    """Columns that rows bring along into the results: `all` but those of bytes, or these, or
    `false` for none."""

    id_column: str | None = None
    """The column that names a row; the results have it as `id`."""

    image_columns: tuple[str, ...] = ()
    """Columns with images: paths, URLs, data URIs, or lists of these; put before the text."""

    shuffle: bool = False
    """Shuffle the rows after slicing."""

    seed: int = 42
    """Seed of the shuffle."""

    buffer_size: int | None = Field(default=None, ge=1)
    """Shuffle within a moving window of so many rows; without it the whole input is shuffled."""

    @model_validator(mode="after")
    def _one_prompt(self) -> DatasetData:
        given = [name for name in ("column", "prompt", "messages") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of column, prompt and messages; got {' and '.join(given)}")
        return self


class OpenaiBatchData(Block):
    """Requests in the OpenAI batch format: a JSON object a line, each with its own `custom_id`."""

    type: Literal["openai_batch"]
    url: Annotated[str, FileRef()] = Field(min_length=1)
    """A path or fsspec URL of the JSONL file."""


class TemplateColumn(Block):
    """A value out of an upstream result: `expr`, or `node` and `path`."""

    label: str
    """Heading, and the name by which an inline `text` refers to it."""

    expr: str | None = None
    """`node.result.items[0].output`; `items[*].output` gives one row per item."""

    node: str | None = None
    """The node, when `expr` is not used."""

    path: str | None = None
    """The path in its result: `result.items[0].output`."""

    @model_validator(mode="after")
    def _one_form(self) -> TemplateColumn:
        if (self.expr is None) == (self.node is None or self.path is None):
            raise ValueError("give either expr, or node and path")
        return self

    @property
    def reference(self) -> str:
        """The column as one expression: `node.path`."""
        return self.expr if self.expr is not None else f"{self.node}.{self.path}"


class TemplateOptions(Block):
    """What stands around the columns of a named graph template."""

    intro: tuple[str, ...] = ()
    """Paragraphs before the columns."""

    closing: tuple[str, ...] = ()
    """Paragraphs after the columns."""


class GraphTemplate(Block):
    """A prompt built from upstream results."""

    name: Literal["two_column_briefing"] | None = None
    """A template that ships with mloc."""

    text: str | None = None
    """An inline template; `{label}` stands for the column of that label."""

    columns: tuple[TemplateColumn, ...] = Field(min_length=1)
    """What the prompt is built from."""

    options: TemplateOptions = TemplateOptions()

    @model_validator(mode="after")
    def _one_form(self) -> GraphTemplate:
        if (self.name is None) == (self.text is None):
            raise ValueError("give either name or text")
        return self


class GraphTemplateData(Block):
    """Rows rendered from the results of upstream nodes."""

    type: Literal["graph_template"]
    template: GraphTemplate
    on_upstream_error: OnUpstreamError = "skip"
    """What becomes of a row with an `items[*]` column whose upstream row failed: `skip` it, so that
    it ends with that error; compute it with an `empty` output; or `fail` the task."""


class UpstreamData(Block):
    """A row for each row of an upstream node; what a later stage without own `data` gets."""

    type: Literal["upstream"]
    node: str
    """The stage or node whose rows to take."""

    text: str = "{prompt}\n\n{output}"
    """The new prompt; `{prompt}` and `{output}` are the upstream row's, and `{columns.NAME}` a
    column that it brought along."""

    where: str | None = None
    """Only rows for which this holds: `f1 < 0.5 and level in ["hard"]`. It reads the columns of the
    upstream rows, their scores, `index`, `prompt`, `output`, `finish_reason` and `error`, of an
    agent's also `steps` and `stop`."""

    on_upstream_error: OnUpstreamError = "skip"
    """What becomes of a row that failed upstream: `skip` it, so that it ends with that error and
    costs no error budget here; compute it with an `empty` output; or `fail` the task."""


InferenceData = Annotated[
    ListData | DatasetData | OpenaiBatchData | GraphTemplateData | UpstreamData,
    Field(discriminator="type"),
]


class Preference(Block):
    """One comparison for preference training."""

    prompt: str
    """What was asked."""

    chosen: str
    """The better answer."""

    rejected: str
    """The worse answer."""


class TrainingData(Block):
    """Rows to train on: a dataset, an earlier stage's rows, or rows written into the template."""

    dataset_name: Annotated[str | None, FileRef()] = None
    """A hub id, or a path or URL of jsonl, json, csv or parquet files."""

    node: str | None = None
    """The stage or node whose rows to take: `prompt` and `completion`, of an agent's `messages` and
    `tools`, with the columns that they brought along and their scores. Rows that failed are left
    out."""

    where: str | None = None
    """Only rows of `node` for which this holds, as for `UpstreamData`: `numeric == 1`."""

    config_name: str | None = None
    """The hub dataset's configuration."""

    split: SplitText = "train"
    """Which rows, as for `DatasetData`."""

    only: Mapping[str, str] = Field(default_factory=dict)
    """Only the rows of the slice that hold these values, as for `DatasetData`."""

    prompt_column: str | None = None
    """The column with the prompt."""

    response_column: str | None = None
    """The column with the answer."""

    text_column: str | None = None
    """The column with whole texts, instead of prompt and response."""

    messages_column: str | None = None
    """The column with lists of chat messages."""

    tools_column: str | None = None
    """The column with the tools that the chat's assistant was offered, in OpenAI's form."""

    chosen_column: str | None = None
    """DPO: the column with the better answer."""

    rejected_column: str | None = None
    """DPO: the column with the worse answer."""

    label_column: str | None = None
    """KTO: the column that says whether the answer is good."""

    separator: str = "\n\n"
    """Stands between prompt and response; giving it means plain text."""

    format: Literal["auto", "chat", "plain"] = "auto"
    """Whether rows go through the chat template; `auto`: if there is one and no `separator`."""

    error_budget: float = Field(default=0.0, ge=0, le=1)
    """Share of rows that may be unusable; they are counted, shown and left out."""

    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""

    max_samples: int | None = Field(default=None, ge=1)
    """Rows at most."""

    shuffle: bool = False
    """Shuffle the rows."""

    seed: int = 42
    """Seed of the shuffle."""

    preferences: tuple[Preference, ...] = ()
    """DPO: comparisons written into the template."""

    prompts: tuple[str, ...] = ()
    """PPO, GRPO, RLOO: prompts written into the template."""

    rows: tuple[Mapping[str, JsonValue], ...] = ()
    """Rows written into the template, with the columns that a dataset would have."""

    @model_validator(mode="after")
    def _has_rows(self) -> TrainingData:
        given = [self.dataset_name, self.node, self.preferences, self.prompts, self.rows]
        if sum(bool(each) for each in given) != 1:
            raise ValueError("give one of dataset_name, node, preferences, prompts or rows")
        if self.where is not None and self.node is None:
            raise ValueError("where chooses among the rows of an earlier stage: give node")
        if self.only and not self.has_columns:
            raise ValueError("only selects by columns: give dataset_name or rows")
        return self

    @property
    def has_columns(self) -> bool:
        """Whether its rows have columns of their own."""
        return bool(self.dataset_name or self.rows)
