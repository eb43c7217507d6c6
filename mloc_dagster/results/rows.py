"""Rows: one input and its output. Rows come by the million, hence msgspec and not pydantic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

BASE64 = "base64"
"""The `encoding` of vectors as bytes: float32, little-endian."""

SERVER_FAULT = "server"
"""The `fault` of rows that failed for what computes them."""


UPSTREAM_FAULT = "upstream"
"""The `fault` of rows that were not computed, as the row that they are built from failed."""

BUDGET_FAULT = "budget"
"""The `fault` of rows that were not computed, as the task had spent its budget."""

EXCUSED_FAULTS = frozenset({UPSTREAM_FAULT, BUDGET_FAULT})
"""Rows with one of these do not count for the share of rows that may end with an error."""


class ServerFault(str):
    """Why a row has no answer, where the row is not to blame: what computed it broke down."""

    __slots__ = ()


class FunctionCall(msgspec.Struct, frozen=True):
    """A function that a model calls.

    Attributes:
        name: Which.
        arguments: JSON text, as the model wrote it: it need not fit the function's schema.
    """

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call in the form of OpenAI's API.

    Attributes:
        id: What the answer to it names in `tool_call_id`.
        function: The function and its arguments.
        type: Always `function`.
    """

    id: str
    function: FunctionCall
    type: str = "function"


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a call that is being generated, as in a chunk of OpenAI's API.

    Attributes:
        index: The call's place among those of its answer, from 0.
        id: The call's, in its first piece only.
        name: The function's, in the call's first piece only.
        arguments: What the JSON text of the arguments grows by.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One chat message.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: Text, or a list of typed parts in the OpenAI form (`{"type": "text", …}`); empty
            beside calls of tools.
        name: Who of several with the same role says it; chat templates may show it.
        tool_calls: What the assistant called.
        tool_call_id: Which call a `tool` message answers.
        reasoning: What the assistant thought before it said this.
    """

    role: str
    content: str | list[dict[str, Any]] = ""  # msgspec decodes no recursive type for JSON
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None


Prompt = str | list[Message]


class Passage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chunk of a document; with scores where it was found.

    Attributes:
        id: The same for the same text at the same place of the same document, cut the same way,
            with the same headings and payload.
        text: What stands there.
        document: The document's id.
        start: Where it begins in the document's text, in characters.
        end: Where it ends there.
        page: The page that it begins on, from 1, of documents that have pages.
        heading: The headings above it, the outermost first.
        payload: What the document brought along.
        score: By what it stands where it does: the higher, the better.
        dense: How near it is by meaning.
        keyword: How well its words fit.
        rerank: What a model says that reads it together with the query.
    """

    id: str
    text: str = ""
    document: str = ""
    start: int = msgspec.field(default_factory=int)  # 0 is written as well: it is a place
    end: int = 0
    page: int | None = None
    heading: list[str] = []
    payload: dict[str, Any] | None = None
    score: float | None = None
    dense: float | None = None
    keyword: float | None = None
    rerank: float | None = None


class Citation(msgspec.Struct, frozen=True):
    """A place where an answer names a passage.

    Attributes:
        n: The passage's number in the prompt, from 1.
        chunk_id: The passage.
        document: Its document.
        start: Where it begins there.
        end: Where it ends there.
        score: What it was found with.
    """

    n: int
    chunk_id: str
    document: str
    start: int
    end: int
    score: float | None = None


class Statement(msgspec.Struct, frozen=True):
    """One thing that an answer says, and whether that is so by its passages.

    Attributes:
        text: What it says.
        supported: Whether a passage says so.
        passage: Which, by its number in the answer's prompt, from 1.
    """

    text: str
    supported: bool
    passage: int | None = None


class Judgement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a judge says of an answer.

    Attributes:
        score: The share of the answer's statements that are supported; None where the verdict
            cannot be read, or the answer states nothing.
        statements: What the answer says, one by one.
        reason: Why, in the judge's words.
        output: All that the judge wrote.
        error: Why there is no score.
    """

    score: float | None = None
    statements: list[Statement] = []
    reason: str = ""
    output: str = ""
    error: str | None = None


class SourceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One row as its source gives it.

    Attributes:
        prompt: Text, or chat messages.
        custom_id: What its sender calls it.
        options: Fields of the task's `inference` or `pooling` block that hold for this row alone.
        adapter: Name of the LoRA adapter that answers it; None for the task's own.
        verbatim: The model reads this text as it is: no chat template, no system prompt.
        error: Why the row cannot be answered, known already where it is read.
        encoding: How its sender wants the vector: `base64`; numbers when empty.
        fault: As in `OutputRow`, of a row with an error.
        columns: What it brings along into the results, by name; see `results.columns`.
        chunks: The document's, where the row is one.
        retrieved: What was found for it.
        answer: What an earlier task made of it, where that is to be judged.
        content: Bytes of a document that is no text; the spool keeps them as a file of the task.
        file: As in `InputRow`.
        media_type: Of a document that says how it is to be read: `text/markdown`.
        payload: What the document's chunks bring along.
    """

    prompt: Prompt
    custom_id: str | None = None
    options: dict[str, Any] | None = None  # checked against the block where rows are read
    adapter: str | None = None
    verbatim: bool = False
    error: str | None = None
    encoding: str = ""
    fault: str = ""
    columns: Mapping[str, Any] | None = None
    chunks: list[Passage] | None = None
    retrieved: list[Passage] | None = None
    answer: OutputRow | None = None
    content: bytes | None = None
    file: str = ""
    media_type: str = ""
    payload: dict[str, Any] | None = None


class InputRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input of a task, as the plan spools it.

    Attributes:
        index: Place in the whole input (after slicing and shuffling), from 0.
        prompt: Text, or chat messages.
        custom_id: What its sender calls it.
        options: As in `SourceRow`.
        adapter: As in `SourceRow`.
        verbatim: As in `SourceRow`.
        error: As in `SourceRow`.
        encoding: As in `SourceRow`.
        fault: As in `SourceRow`.
        chunks: As in `SourceRow`.
        retrieved: As in `SourceRow`.
        answer: As in `SourceRow`.
        file: The file of the task's folder that holds the document; empty where its text is the
            prompt.
        media_type: As in `SourceRow`.
        payload: As in `SourceRow`.
    """

    index: int
    prompt: Prompt
    custom_id: str | None = None
    options: dict[str, Any] | None = None
    adapter: str | None = None
    verbatim: bool = False
    error: str | None = None
    encoding: str = ""
    fault: str = ""
    chunks: list[Passage] | None = None
    retrieved: list[Passage] | None = None
    answer: OutputRow | None = None
    file: str = ""
    media_type: str = ""
    payload: dict[str, Any] | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of an answer, and how likely it was.

    Attributes:
        token: Its text.
        logprob: Natural logarithm of its probability.
        top: The likeliest tokens at its place, each with its log probability.
    """

    token: str
    logprob: float
    top: list[tuple[str, float]] = []


class OutputRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one input became.

    Attributes:
        index: The input's place in the whole input.
        prompt: The input, unchanged.
        output: The text, or the first of `n` texts; empty when `error` is set.
        finish_reason: `stop`, `length`, `tool_calls` or `error`; of several texts, why the first
            ended.
        outputs: All `n` texts when more than one was asked for.
        error: Why this row has no output.
        prompt_tokens: Tokens the model read.
        completion_tokens: Tokens the model wrote, over all `n`.
        latency_s: Seconds from the row's start to its end.
        engine: What computed it, with version: `transformers 5.19.0`.
        worker: Who computed it: `host:pid`.
        attempt: The shard's attempt that computed it, from 1.
        revision: Which state of the model computed it: the hub's commit, or `sha256:…` over its
            files; empty where there is no model.
        finish_reasons: Why each of `outputs` ended.
        tool_calls: What the model called, in the first of several answers.
        reasoning: What it thought before it answered, in the first of several answers.
        all_tool_calls: Of several answers what each called, if one of them called anything.
        all_reasoning: Of several answers what was thought before each, if anything was.
        reasoning_tokens: Those of `completion_tokens` that were thoughts.
        steps: Turns of the model, of an agent's row.
        stop: What ended an agent's row: `answer`, `max_steps`, `budget`, `timeout` or `error`.
        failed_calls: Calls of tools that failed, of an agent's row.
        place: Its place in the plan's order; -1 when that is its index.
        custom_id: What its sender calls it.
        embedding: The vector, of an embedding task.
        logprobs: One list per answer, one entry per token.
        cached_tokens: Prompt tokens that the engine found in its prefix cache.
        padding_tokens: Tokens that were computed only to fill this row's batch.
        engine_s: The row's share of the engine's busy seconds; a step's time is divided among
            the rows it works on.
        energy_j: The row's share of the device's energy in joules; None where nothing measures it.
        gpu_s: `engine_s` times the GPUs that the engine ran on; 0 on CPUs.
        reused: `task` when an equal row of this task was computed instead, `cache` when an earlier
            task did; empty when the row was computed itself.
        saved_s: Engine seconds that the reuse saved.
        fault: `server` when the error is no fault of the row: the engine or its worker broke down;
            `upstream` when the row that it is built from failed, and it was not computed; `budget`
            when it was not computed since the task had spent its budget.
        encoding: As in `SourceRow`; `embedding` is numbers all the same.
        chunks: What a document was cut into.
        retrieved: What was found for the row, the best first.
        citations: What the answer names of it.
        abstained: Whether the model said that the passages do not hold the answer.
        citation_error: Why the answer's citations are not what they should be.
        left_out: Passages, the last ones, that there was no room for.
        cut_characters: How much of the only passage's end there was no room for.
        judgement: What a judge says of it; None of a row that is not judged.
        counts: How often what its task type counts has happened in it, by name.
    """

    index: int
    prompt: Prompt
    output: str = ""
    finish_reason: str = "stop"
    outputs: list[str] | None = None
    error: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    engine: str = ""
    worker: str = ""
    attempt: int = 1
    place: int = -1
    custom_id: str | None = None
    embedding: list[float] | None = None
    logprobs: list[list[TokenLogprob]] | None = None
    cached_tokens: int = 0
    padding_tokens: int = 0
    engine_s: float = 0.0
    energy_j: float | None = None
    reused: str = ""
    saved_s: float = 0.0
    gpu_s: float = 0.0
    fault: str = ""
    encoding: str = ""
    revision: str = ""
    finish_reasons: list[str] | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    all_tool_calls: list[list[ToolCall]] | None = None
    all_reasoning: list[str | None] | None = None
    reasoning_tokens: int = 0
    steps: int = 0
    stop: str = ""
    failed_calls: int = 0
    chunks: list[Passage] | None = None
    retrieved: list[Passage] | None = None
    citations: list[Citation] | None = None
    abstained: bool | None = None
    citation_error: str | None = None
    left_out: int = 0
    cut_characters: int = 0
    judgement: Judgement | None = None
    counts: dict[str, int] | None = None

    @property
    def answer(self) -> OutputRow | None:
        """What a later task judges: the row, as far as it is its answer; None if it failed."""
        if self.error is not None:
            return None
        nothing = {"logprobs": None, "embedding": None, "judgement": None, "counts": None}
        return msgspec.structs.replace(self, prompt="", **nothing)


def failed_row(row: InputRow, error: str, engine: str = "", prompt_tokens: int = 0) -> OutputRow:
    """Returns the output of a row that has none.

    Args:
        row: The input.
        error: Why; a `ServerFault` where the row is not to blame.
        engine: What should have computed it.
        prompt_tokens: Tokens that the model has read all the same.
    """
    return OutputRow(
        index=row.index,
        prompt=row.prompt,
        finish_reason="error",
        error=str(error),
        fault=SERVER_FAULT if isinstance(error, ServerFault) else row.fault,
        prompt_tokens=prompt_tokens,
        engine=engine,
        custom_id=row.custom_id,
    )
