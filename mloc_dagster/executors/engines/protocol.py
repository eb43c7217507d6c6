"""What an engine must do: load a model, and answer requests, whichever library runs it.

An `EngineType` (`schema/engine_type.py`) names its `EngineLoader`, and this loads an `Engine`.
`executors.inference` turns rows into requests and answers into rows; an engine sees neither shards
nor files, and every engine passes the suite in `tests/contract/test_inference_engines.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import JsonValue

from mloc_dagster.executors.model_source import paths_in
from mloc_dagster.executors.prompts import RowBlock
from mloc_dagster.results import InputRow, TokenLogprob, ToolCall, ToolCallDelta
from mloc_dagster.schema import EngineType, Inference, Model, ModelSpec, Pooling, changed_options


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as the model will read it.

    Attributes:
        text: The prompt after system prompt and chat template.
        images: Pictures in the order of their places in the text (`PIL.Image.Image`).
        image_ids: sha256 of each picture's bytes: what tells two of them apart.
        special: Whether the tokenizer adds its own special tokens, such as the one that begins a
            text: a chat template writes these itself.
        pair: The text that is read together with it, to be scored; None of a text by itself.
    """

    text: str
    images: tuple[Any, ...] = ()
    image_ids: tuple[str, ...] = ()
    special: bool = True
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class PairTokens:
    """Two texts as a model reads them together.

    Attributes:
        tokens: The token ids of both, with the special ones around them.
        second: Where the second text begins, for models that are told (`token_type_ids`); 0 for
            all others.
    """

    tokens: list[int]
    second: int = 0


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """A row that an engine is to answer; requests are independent of each other.

    Attributes:
        row: The row.
        rendered: What the model reads.
        tokens: The text's token ids (of a text with images, before these are put in), or those of
            both texts of a pair.
        sampling: How to answer: the task's block with the row's own options; None for vectors and
            scores.
        pooling: How to embed; None for text and scores.
        seed: Seeds what is random in this row's answers, whatever else runs beside it.
        adapter: Name of the LoRA adapter to answer with; None for the model as it is.
        urgent: Somebody waits for the answer: rows of shards come after it.
        stream: The answer is wanted as it is generated (`Replies.text`, `reasoning`, `tool_call`).
        second: Of a pair, as in `PairTokens`.
    """

    row: InputRow
    rendered: Rendered
    tokens: list[int]
    sampling: Inference | None = None
    pooling: Pooling | None = None
    seed: int = 0
    adapter: str | None = None
    urgent: bool = False
    stream: bool = False
    second: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text.

    Attributes:
        text: Without what ended it.
        finish_reason: `stop`, `length`, or `tool_calls` where there are any.
        tokens: How many tokens were generated, the ending one included.
        logprobs: One entry per token, when they were asked for.
        tool_calls: What the model called; its text then is what stood beside the calls.
        reasoning: What it thought before the text; None where it did not think.
        reasoning_tokens: Those of `tokens` that were thoughts, where the engine tells.
    """

    text: str
    finish_reason: str
    tokens: int
    logprobs: list[TokenLogprob] | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    reasoning: str | None = None
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request became.

    Attributes:
        answers: The `n` texts, in order; empty for a vector or a score.
        embedding: The vector; None for all else.
        score: How well the texts of a pair go together: the higher, the better; None for all else.
        prompt_tokens: Tokens the model read, those of images included.
        cached_tokens: How many of these the engine had in its prefix cache.
        padding_tokens: Tokens computed only to fill the request's batch.
        engine_s: The request's share of the engine's busy seconds.
        latency_s: Seconds from the request's arrival in the engine to its end.
    """

    answers: tuple[Answer, ...] = ()
    embedding: list[float] | None = field(default=None)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    padding_tokens: int = 0
    engine_s: float = 0.0
    latency_s: float = 0.0
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Replies:
    """Where an engine's answers go. Each request ends in exactly one of the first two.

    Attributes:
        done: The request has its answer.
        failed: The request cannot be answered, for this reason; others can.
        cancelled: Look at this between engine steps; when true, raise `TaskCancelled`.
        log: One line for the task's own log file.
        started: Optional, for an engine that draws far more than it computes at once: these
            requests, and no others, are computed now.
        text: Takes each new piece of a request's answer, with the answer's number, where the
            request's `stream` is set: whole characters, none that a stop string will cut away,
            and all of them together the answer's text. Neither calls nor thoughts are in it.
        reasoning: Takes in the same way what the model thinks, where the engine tells it apart.
        tool_call: Takes in the same way pieces of the calls: each call begins with its id and
            name, and the pieces of its arguments together are the call's. An engine may give a
            whole call as one piece.
    """

    done: Callable[[EngineRequest, Completion], None]
    failed: Callable[[EngineRequest, str], None]
    cancelled: Callable[[], bool]
    log: Callable[[str], None]
    started: Callable[[Sequence[EngineRequest]], None] = lambda _: None
    text: Callable[[EngineRequest, int, str], None] = lambda *_: None
    reasoning: Callable[[EngineRequest, int, str], None] = lambda *_: None
    tool_call: Callable[[EngineRequest, int, ToolCallDelta], None] = lambda *_: None


class Engine(Protocol):
    """A loaded model.

    Attributes:
        label: The library with its version: `vllm 0.32.0`.
        name: The model, as the template names it.
        revision: The hub's commit, or `sha256:…` over the model's files.
        device: Where it runs: `cpu`, `cuda:0`, …
        size_bytes: Bytes it holds there: weights, buffers, key-value cache.
    """

    label: str
    name: str
    revision: str

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def size_bytes(self) -> int:
        """Memory it holds on its device."""
        ...

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Renders a row through the chat template, up to where the answer begins.

        Args:
            row: The row.
            block: How it is to be answered: what stands before it, the tools that the model may
                call, values for the chat template.

        Raises:
            ValueError: If this row cannot be rendered; the reason becomes the row's error.
        """
        ...

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of rendered texts, as the model will read them.

        Args:
            texts: All of one kind.
            special: As in `Rendered`.
        """
        ...

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Answers all requests, in any order, drawing them as there is room for more.

        None among them says that there is none now and that more will come: an engine goes on
        with what it has. A source that says so waits a moment first where nothing is computed.

        A request that is too long, or that the engine cannot digest, fails alone.

        Raises:
            TaskCancelled: As soon as `cancelled` says so.
            TransientError: If the engine is lost and another attempt may help.
        """
        ...

    def close(self) -> None:
        """Frees everything: after this its memory is really available."""
        ...


@runtime_checkable
class CallableEngine(Protocol):
    """An engine that answers what somebody waits for while it runs a shard."""

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Answers requests now, in this thread or in the one that is in `run`.

        Called from any thread, from several at once. All replies are made in the calling thread;
        no request's failure, nor an error of `replies`, concerns those of others.

        Args:
            requests: Each with `urgent`, and with a number of its own in `row.index`.
            replies: Takes what becomes of them.

        Raises:
            TaskCancelled: As soon as `cancelled` says so; the requests have left the engine then.
        """
        ...


@runtime_checkable
class ScoringEngine(Engine, Protocol):
    """An engine that scores how well two texts go together (`Rendered.pair`)."""

    def tokenize_pairs(self, text: str, others: Sequence[str]) -> list[PairTokens]:
        """Returns what the model reads of a text together with each of the others.

        Where both are too long, the other text is cut, and never the first.

        Raises:
            ValueError: If the first text leaves no room for another.
        """
        ...


@runtime_checkable
class SleepingEngine(Protocol):
    """An engine that can leave its GPUs for a while."""

    @property
    def asleep_bytes(self) -> int | None:
        """Bytes of main memory that it takes asleep; None if it cannot sleep."""
        ...

    def sleep(self) -> None:
        """Moves its weights to main memory and lets go of its cache; nobody may be using it."""
        ...

    def wake(self) -> None:
        """Moves its weights back, with an empty cache."""
        ...


@runtime_checkable
class LimitedEngine(Protocol):
    """An engine that knows how much its model reads."""

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None without a limit."""
        ...


@dataclass(frozen=True, slots=True)
class OptionsIdentity:
    """What of an engine's options decides what it answers.

    Attributes:
        answers: The options that answers depend on, by name.
        places: Files and folders of this machine that they name, whose content counts.
        unknown: An option that names something without a revision: what answers is not known
            exactly, so nothing is reused. None where all is known.
    """

    answers: dict[str, JsonValue]
    places: tuple[Path, ...] = ()
    unknown: str | None = None


class EngineLoader(ABC):
    """Loads models into an engine. Heavy imports belong into its methods.

    Args:
        engine: The engine's descriptor.
    """

    def __init__(self, engine: EngineType) -> None:
        self.engine = engine

    @abstractmethod
    def load(self, spec: ModelSpec) -> Engine:
        """Loads the model of a task.

        Raises:
            MissingExtraError: If the engine is not installed.
            TerminalError: If there is no such model, or the engine cannot run it.
            TransientError: If the hub cannot be reached.
        """

    def installed(self) -> bool:
        """Tells whether its library is on this machine, whatever hardware there is."""
        return True

    def obstacle(self, spec: ModelSpec) -> str | None:
        """Returns why it cannot run a task on this machine; None when it can."""
        return None

    def reason(self, spec: ModelSpec) -> str:
        """Returns why it is the best choice on this machine, as the end of a line."""
        return "it can run here"

    def identity(self, model: Model) -> OptionsIdentity:
        """Returns what of its options decides what it answers; imports no heavy library.

        By default all but those of `batching` and `placing`, with the content of every file and
        folder that one of them names.
        """
        options = model.options(self.engine.name, self.engine.options)
        answers = changed_options(options, self.engine.batching | self.engine.placing)
        return OptionsIdentity(answers, tuple(paths_in(answers)))

    def prefix_block_tokens(self, spec: ModelSpec) -> int:
        """Returns the tokens of a block of its prefix cache; 0 without one."""
        return 0
