"""The transformers engine, on CPU and on CUDA.

Requests are drawn in windows, sorted by length and generated in batches. Which rows share a batch
changes no answer on purpose; what remains is the rounding of the matrix products, which depends
on a batch's shape (see `sampling`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mloc_dagster.errors import MlocError, TaskCancelled, TransientError
from mloc_dagster.executors.engines.pieces import Pieces
from mloc_dagster.executors.engines.protocol import (
    Answer,
    Completion,
    Engine,
    EngineLoader,
    EngineRequest,
    Rendered,
    Replies,
)
from mloc_dagster.executors.engines.transformers.generation import Slot, generate
from mloc_dagster.executors.engines.transformers.model import (
    DEVICE_LOST,
    OUT_OF_MEMORY,
    LoadedModel,
    load_model,
    options_of,
    with_pixels,
)
from mloc_dagster.executors.engines.transformers.responses import Response, Responses, Say, held
from mloc_dagster.executors.engines.transformers.sampling import GrammarCache
from mloc_dagster.executors.engines.turn import Ticket, Turn
from mloc_dagster.executors.image_stream import windows
from mloc_dagster.executors.model_cache import release_memory
from mloc_dagster.executors.prompts import RowBlock, render_chat, render_plain
from mloc_dagster.results import InputRow, ServerFault
from mloc_dagster.schema import EmbeddingSpec, Inference, ModelSpec, TransformersOptions

WINDOW_ROWS = 1024  # long enough to sort by length, short enough for bounded memory

BY_ROW = {
    *("system_prompt", "seed", "n", "structured_outputs", "error_budget", "chat_template_kwargs"),
    *("tools", "tool_choice", "parallel_tool_calls"),
}
"""Fields of `inference` in which the rows of a batch may differ."""


class TransformersLoader(EngineLoader):
    """Loads models for text, for vectors or for scores."""

    def load(self, spec: ModelSpec) -> Engine:
        """Loads the model of a task; see `model.load_model` for what may go wrong."""
        if isinstance(spec, EmbeddingSpec):
            from mloc_dagster.executors.engines.transformers import pooling

            return pooling.load_engine(spec)
        if spec.ability == "score":
            from mloc_dagster.executors.engines.transformers import scoring

            return scoring.load_engine(spec)
        return load_engine(spec)


def load_engine(spec: ModelSpec) -> TransformersEngine:
    """Loads the model; see `model.load_model` for what may go wrong."""
    engine = TransformersEngine(load_model(spec.model, spec.enforce_cpu), options_of(spec.model))
    if isinstance(spec.row_block, Inference):
        try:
            engine.responses.check(spec.row_block)
        except BaseException:
            engine.close()
            raise
    return engine


class TransformersEngine:
    """Generates text with a model that transformers loads.

    Args:
        loaded: The model.
        options: How large batches may be, and how answers are read.

    Attributes:
        responses: Reads answers.
    """

    def __init__(self, loaded: LoadedModel, options: TransformersOptions) -> None:
        self.loaded = loaded
        self.label = loaded.engine
        self.name = loaded.name
        self.revision = loaded.revision
        self._options = options
        self._turn = Turn()
        self._sees = loaded.processor is not None
        vocab_size = loaded.model.config.get_text_config().vocab_size
        self._shelf = GrammarCache(loaded.tokenizer, vocab_size)
        self.responses = Responses(options.response_template, loaded.tokenizer, loaded.name)

    @property
    def device(self) -> str:
        """Where its weights are."""
        return str(self.loaded.model.device)

    @property
    def longest(self) -> int | None:
        """Tokens that a prompt and its answer may have together; None without a limit."""
        return self.loaded.max_positions

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights and buffers."""
        return self.loaded.size_bytes

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Renders a row: a chat through the model's template, else as paragraphs.

        Raises:
            ValueError: If the row holds more than text, or the template refuses it.
        """
        if self.loaded.has_chat_template:
            chat = render_chat(self.loaded.tokenizer, row.prompt, block, sees=self._sees)
            return Rendered(chat, special=False)
        return Rendered(render_plain(row.prompt, block, sees=self._sees))

    def tokenize(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        """Returns the token ids of rendered texts."""
        if not texts:
            return []
        return self.loaded.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]

    def run(self, requests: Iterator[EngineRequest | None], replies: Replies) -> None:
        """Generates, window by window; the requests of a batch are done when it ends.

        Raises:
            TaskCancelled: If the task was asked to stop; looked at between tokens.
            TransientError: If the device is lost.
        """
        self._run(requests, replies, urgent=False)

    def call(self, requests: Sequence[EngineRequest], replies: Replies) -> None:
        """Generates between two tokens of a shard's batch, in slices of the calls' share of time.

        Calls take turns, slice by slice, and share no batch: one that comes later would have to
        wait for the end of the batch before.

        Raises:
            TaskCancelled: If nobody waits any more; looked at between tokens.
            TransientError: If the device is lost.
        """
        self._run(iter(requests), replies, urgent=True)

    def _run(
        self, requests: Iterator[EngineRequest | None], replies: Replies, *, urgent: bool
    ) -> None:
        runner = BatchRunner(self.loaded, replies, self._turn, urgent=urgent)
        options = self._options
        note = ""
        for window in windows(requests, WINDOW_ROWS):
            if replies.cancelled():
                raise TaskCancelled("stopped between two windows of rows")
            slots = list(self._slots(window, replies))
            if note != self.responses.note:
                note = self.responses.note
                replies.log(note)
            for batch in make_batches(slots, options.max_batch_size, options.max_batch_tokens):
                runner.run(batch)

    def close(self) -> None:
        """Lets go of the weights and returns their memory."""
        self.loaded.free()

    def _slots(self, window: list[EngineRequest], replies: Replies) -> Iterator[Slot]:
        for given in window:
            try:
                request, pixels = with_pixels(self.loaded.processor, given)
            except ValueError as error:
                replies.failed(given, str(error))
                continue
            sampling, most = request.sampling, self.loaded.max_positions
            if sampling is None:
                replies.failed(request, "this engine generates text and makes no vectors")
                continue
            room = sampling.max_tokens
            if most is not None:
                room = min(room, most - len(request.tokens))
            if room < 1:
                replies.failed(
                    request,
                    f"the prompt has {len(request.tokens)} tokens, which leaves no room for a new "
                    f"one: {self.name} reads at most {most}",
                )
                continue
            try:
                self.loaded.adapters.check(request.adapter)
                slots = [
                    Slot(
                        request,
                        answer,
                        room,
                        None,
                        pixels,
                        *self._readers(request, answer, replies),
                    )
                    for answer in range(sampling.draws)
                ]
                grammar = self._grammar(request, sampling)
            except ValueError as error:
                replies.failed(request, str(error))
                continue
            yield from (replace(slot, grammar=grammar) for slot in slots)

    def _readers(
        self, request: EngineRequest, answer: int, replies: Replies
    ) -> tuple[Pieces | None, Response | None]:
        """Returns what hears an answer grow, and what reads it."""
        sampling = request.sampling
        say = Say(
            partial(replies.text, request, answer),
            partial(replies.reasoning, request, answer),
            partial(replies.tool_call, request, answer),
        )
        response = self.responses.begin(request, answer, say if request.stream else None)
        if sampling is None or response is not None or not request.stream:
            return None, response
        return Pieces(partial(replies.text, request, answer), sampling.stop), None

    def _grammar(self, request: EngineRequest, sampling: Inference) -> Any | None:
        tag = self.responses.choice.structural_tag if held(sampling) else None
        if tag is None:
            return self._shelf.of(sampling)
        return self._shelf.of_calls(sampling, tag, self.responses.thinking(request))


class BatchRunner:
    """Generates batches and replies to each request as soon as its last answer is there.

    A batch that does not fit in memory is halved, and so are those after it. A batch that fails
    in another way is cut in two until the request is found that it fails for.

    Args:
        loaded: The model.
        replies: Takes answers, failures and log lines.
        turn: Held while a batch is generated; given to others between tokens.
        urgent: Whether somebody waits for these answers.
    """

    def __init__(
        self, loaded: LoadedModel, replies: Replies, turn: Turn, *, urgent: bool = False
    ) -> None:
        self._loaded = loaded
        self._replies = replies
        self._turn = turn
        self._urgent = urgent
        self._most: int | None = None
        self._open: dict[int, _OpenRequest] = {}

    def run(self, batch: list[Slot]) -> None:
        """Generates a batch, in parts if need be.

        Raises:
            TaskCancelled: If the task was asked to stop.
            TransientError: If the device is lost.
        """
        waiting = [batch]
        while waiting:
            part = waiting.pop()
            if self._most is not None and len(part) > self._most:
                waiting += _halves(part)
                continue
            error, scarce = self._try(part)
            if error is None:
                continue
            if len(part) == 1:
                self._fail(part[0].request, error)
                continue
            if scarce:
                self._most = len(part) // 2
                self._replies.log(f"out of memory with {len(part)} rows: {self._most} from here on")
            waiting += _halves(part)

    def _try(self, part: list[Slot]) -> tuple[str | None, bool]:
        """Returns what went wrong, if anything, and whether memory was what lacked."""
        with self._turn.held(Ticket(self._urgent), self._replies.cancelled) as ticket:
            return self._generate(part, ticket)

    def _generate(self, part: list[Slot], ticket: Ticket) -> tuple[str | None, bool]:
        started = time.monotonic()
        for each in part:
            state = self._state(each.request)
            state.started_s = state.started_s or started
        self._replies.started([each.request for each in part])
        try:
            answers = generate(
                self._loaded,
                _sampling(part),
                part,
                self._replies.cancelled,
                partial(self._turn.give_way, ticket),
            )
        except MlocError:
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            scarce = isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)
            if not scarce and any(sign in text for sign in DEVICE_LOST):
                raise TransientError(f"the device is lost: {text}") from error
        else:
            share_s = (time.monotonic() - started - ticket.away_s) / len(part)
            padding = _padding(part, answers)
            for each, answer, wasted in zip(part, answers, padding, strict=True):
                self._take(each, answer, share_s, wasted)
            return None, False
        if scarce:
            release_memory()
        return text, scarce

    def _take(self, slot: Slot, answer: Answer, share_s: float, padding: int) -> None:
        request = slot.request
        if slot.pieces is not None:
            slot.pieces.end(answer.text)
        state = self._state(request)
        state.answers[slot.answer] = answer
        state.engine_s += share_s
        state.padding += padding
        sampling = _sampling([slot])
        if state.failed or len(state.answers) < sampling.draws:
            return
        answers = tuple(state.answers[number] for number in sorted(state.answers))
        del self._open[id(request.row)]
        self._replies.done(
            request,
            Completion(
                answers=answers * (sampling.n // sampling.draws),
                prompt_tokens=len(request.tokens),
                padding_tokens=state.padding,
                engine_s=state.engine_s,
                latency_s=time.monotonic() - state.started_s,
            ),
        )

    def _fail(self, request: EngineRequest, error: str) -> None:
        state = self._state(request)
        if not state.failed:
            state.failed = True
            self._replies.failed(request, ServerFault(error))

    def _state(self, request: EngineRequest) -> _OpenRequest:
        # By the row itself: several turns of one row may be under way.
        return self._open.setdefault(id(request.row), _OpenRequest(request.row))


class _OpenRequest:
    """A request some of whose answers are still to come.

    Args:
        row: Its row; kept, so that its identity stays its own.
    """

    def __init__(self, row: InputRow) -> None:
        self.row = row
        self.answers: dict[int, Answer] = {}
        self.started_s = 0.0
        self.engine_s = 0.0
        self.padding = 0
        self.failed = False


def _sampling(part: list[Slot]) -> Inference:
    sampling = part[0].request.sampling
    if sampling is None:
        raise TypeError("a slot without sampling")
    return sampling


def _padding(part: list[Slot], answers: list[Answer]) -> list[int]:
    """Returns, for each slot, the tokens computed beyond its own: left of it and behind its end."""
    width = max(len(each.tokens) for each in part)
    length = max(answer.tokens for answer in answers)
    return [
        width - len(slot.tokens) + length - answer.tokens
        for slot, answer in zip(part, answers, strict=True)
    ]


def _halves(batch: list[Slot]) -> list[list[Slot]]:
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]


def make_batches(
    slots: Iterable[Slot], max_batch_size: int, max_batch_tokens: int
) -> Iterator[list[Slot]]:
    """Yields batches, longest prompts first: what does not fit in memory shows at once.

    All slots of a batch have the same adapter, the same sampling but for `BY_ROW`, somebody or
    nobody who reads them, and the same `room`: none may run past the model's last position, and
    none may be cut short because its neighbour is longer.

    Args:
        slots: What to generate; held in memory.
        max_batch_size: Slots per batch at most.
        max_batch_tokens: Prompt and new tokens per batch at most, padding included; a single
            slot above it gets a batch of its own.
    """
    for alike in _alike(slots):
        batch: list[Slot] = []
        for each in sorted(alike, key=lambda one: len(one.tokens), reverse=True):
            if batch:
                width = len(batch[0].tokens) + batch[0].room
                full = len(batch) >= max_batch_size or (len(batch) + 1) * width > max_batch_tokens
                if full or each.room != batch[0].room:
                    yield batch
                    batch = []
            batch.append(each)
        if batch:
            yield batch


def _alike(slots: Iterable[Slot]) -> list[list[Slot]]:
    groups: dict[tuple[str | None, str, int, bool], list[Slot]] = {}
    keys: dict[int, str] = {}  # slots hold their blocks, so an identity stays one block's
    for slot in slots:
        sampling = slot.request.sampling
        key = keys.get(id(sampling))
        if key is None:
            key = "" if sampling is None else sampling.model_dump_json(exclude=BY_ROW)
            keys[id(sampling)] = key
        images = len(slot.request.rendered.images)  # of one shape, for models that want it so
        read = slot.response is not None
        groups.setdefault((slot.request.adapter, key, images, read), []).append(slot)
    return list(groups.values())
