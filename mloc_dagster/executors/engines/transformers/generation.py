"""Generating the answers of one batch, and looking between two tokens whether to go on.

transformers' `StopStringCriteria` is no replacement for `StopStrings`: it has no `min_tokens`, and
does not tell where an answer ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.engines.pieces import Pieces
from mloc_dagster.executors.engines.protocol import Answer, EngineRequest
from mloc_dagster.executors.engines.transformers.model import LoadedModel, batch_pixels
from mloc_dagster.executors.engines.transformers.responses import Response
from mloc_dagster.executors.engines.transformers.sampling import GrammarMask, logits_processors
from mloc_dagster.results import TokenLogprob
from mloc_dagster.schema import Inference

if TYPE_CHECKING:
    import torch


SECONDS_PER_LOOK = 0.1
# A token adds at least a byte; a few more absorb characters and spaces cut at the tail's start.
TAIL_MARGIN = 4


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one answer in a batch; a request has `n` of them.

    Attributes:
        request: The request.
        answer: Place among the request's answers, from 0.
        room: New tokens that it may get: `max_tokens`, or less where the model's context ends.
        grammar: The compiled grammar of its form (see `sampling`); None when it is free.
        pixels: Its images as tensors (see `with_pixels`); empty without any.
        pieces: Takes the text as it grows; None where nobody listens.
        response: Reads the answer, and takes it as it grows if somebody listens; None where it is
            text only.
    """

    request: EngineRequest
    answer: int
    room: int
    grammar: Any | None = None
    pixels: Mapping[str, Any] = field(default_factory=dict)
    pieces: Pieces | None = None
    response: Response | None = None

    @property
    def listener(self) -> Pieces | Response | None:
        """What takes the text as it grows; None where nobody listens."""
        return self.response if self.request.stream and self.response is not None else self.pieces

    @property
    def tokens(self) -> list[int]:
        """The prompt."""
        return self.request.tokens


def generate(
    loaded: LoadedModel,
    inference: Inference,
    batch: Sequence[Slot],
    cancelled: Callable[[], bool],
    give_way: Callable[[], None] = lambda: None,
) -> list[Answer]:
    """Generates one answer for each slot of a batch that `make_batches` made.

    Args:
        loaded: The model.
        inference: How to sample.
        batch: What to generate.
        cancelled: Asked between tokens.
        give_way: Called between tokens; it may let another thread generate with the same model.

    Raises:
        TaskCancelled: As soon as `cancelled` says so; the batch is lost.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    final = sorted(_final_token_ids(loaded, inference))
    width = max(len(each.tokens) for each in batch)
    ids, mask = _left_padded(batch, width, loaded.pad_token_id, loaded.model.device)
    streams = [(each.request.seed, each.answer) for each in batch]
    # Those who read answers need the special tokens that calls are marked with.
    raw = batch[0].response is not None
    decode = _decoder(loaded, skip_special_tokens=inference.skip_special_tokens and not raw)
    stop_strings = StopStrings(inference.stop, decode, width=width, least=inference.min_tokens)
    adapter = batch[0].request.adapter
    looks: list[Any] = [
        StopWhenCancelled(cancelled),
        Pause(give_way, lambda: loaded.adapters.activate(adapter)),
    ]
    if inference.stop:
        looks.append(stop_strings)
    if any(each.listener is not None for each in batch):
        looks.append(Speaker(batch, decode, frozenset(final), stop_strings, width=width))
    processors: list[Any] = []
    if any(each.grammar is not None for each in batch):
        processors.append(GrammarMask([each.grammar for each in batch], final, width))
    recorder = None if inference.logprobs is None else LogprobRecorder(inference.logprobs)
    if recorder is not None:
        processors.append(recorder)
        looks.append(recorder.look)
    processors += logits_processors(inference, streams, mask, final)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=batch[0].room,
        eos_token_id=final or None,
        pad_token_id=loaded.pad_token_id,
    )
    loaded.adapters.activate(adapter)
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **batch_pixels([each.pixels for each in batch], loaded.model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(looks),
        )
    lists = output[:, width:].tolist()
    ended_at = stop_strings.ended_at or [None] * len(lists)
    kept = _kept(lists, ended_at, frozenset(final))
    shown = loaded.eos_token_ids if raw else frozenset[int]()
    texts = _texts(decode, inference, stop_strings, kept, frozenset(final) - shown)
    logprobs: Sequence[list[TokenLogprob] | None] = [None] * len(kept)
    if recorder is not None:
        logprobs = recorder.read([tokens for tokens, _ in kept], loaded.tokenizer)
    answers = [
        Answer(text, "stop" if ended or cut else "length", len(tokens), likelihoods)
        for (tokens, ended), (text, cut), likelihoods in zip(kept, texts, logprobs, strict=True)
    ]
    return [
        answer if slot.response is None else slot.response.answer(answer, tokens, decode)
        for slot, answer, (tokens, _) in zip(batch, answers, kept, strict=True)
    ]


def _kept(
    lists: list[list[int]], ended_at: Sequence[int | None], final: frozenset[int]
) -> list[tuple[list[int], bool]]:
    """Returns each answer's tokens up to what ended it, and whether anything did."""
    lengths = [
        next((place + 1 for place, token in enumerate(tokens[:ended]) if token in final), ended)
        for tokens, ended in zip(lists, ended_at, strict=True)
    ]
    return [
        (tokens[:length], length is not None) for tokens, length in zip(lists, lengths, strict=True)
    ]


def _texts(
    decode: Callable[[Any], list[str]],
    inference: Inference,
    stop_strings: StopStrings,
    kept: list[tuple[list[int], bool]],
    final: frozenset[int],
) -> list[tuple[str, bool]]:
    """Returns each answer's text before what ended it, and whether a stop string did."""
    answers = [tokens[:-1] if tokens and tokens[-1] in final else tokens for tokens, _ in kept]
    texts = decode(answers)
    starts = stop_strings.starts([tokens for tokens, _ in kept])
    return [
        cut_at_stop(text, inference.stop, start) for text, start in zip(texts, starts, strict=True)
    ]


def _final_token_ids(loaded: LoadedModel, inference: Inference) -> set[int]:
    eos = frozenset[int]() if inference.ignore_eos else loaded.eos_token_ids
    return {*eos, *inference.stop_token_ids}


def _left_padded(batch: Sequence[Slot], width: int, pad: int, device: Any) -> tuple[Any, Any]:
    import torch

    gaps = [width - len(each.tokens) for each in batch]
    ids = [[pad] * gap + each.tokens for gap, each in zip(gaps, batch, strict=True)]
    mask = torch.arange(width)[None, :] >= torch.tensor(gaps)[:, None]
    return torch.tensor(ids).to(device), mask.to(device, torch.long)


def _decoder(loaded: LoadedModel, *, skip_special_tokens: bool) -> Callable[[Any], list[str]]:
    def decode(lists: list[list[int]]) -> list[str]:
        return loaded.tokenizer.batch_decode(
            lists,
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )

    return decode


class StopWhenCancelled:
    """Raises `TaskCancelled` out of `generate`; asks ten times a second at most."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled
        self._next_look = 0.0
        self._go_on: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Returns that no answer has ended."""
        import torch

        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + SECONDS_PER_LOOK
            if self._cancelled():
                raise TaskCancelled("stopped between two tokens")
        if self._go_on is None:
            self._go_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._go_on


class Pause:
    """Lets other threads generate between two tokens.

    Args:
        give_way: Returns when this thread is to go on.
        resume: Puts back what another thread may have changed in the model.
    """

    def __init__(self, give_way: Callable[[], None], resume: Callable[[], None]) -> None:
        self._give_way = give_way
        self._resume = resume
        self._go_on: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Returns that no answer has ended."""
        import torch

        self._give_way()
        self._resume()
        if self._go_on is None:
            self._go_on = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        return self._go_on


class Speaker:
    """Says answers as they grow.

    transformers' streamers take a batch of one and know of no stop string. Each step decodes the
    whole answer, a tenth of a millisecond for a thousand tokens: only so the pieces, one after
    another, are what the whole decodes to, whichever tokenizer it is.

    Args:
        batch: The slots.
        decode: Turns lists of token ids into texts.
        final: Tokens that end an answer and are no part of its text.
        stop_strings: Knows which answers have ended by one; called before this.
        width: Tokens of the padded prompts.
    """

    def __init__(
        self,
        batch: Sequence[Slot],
        decode: Callable[[Any], list[str]],
        final: frozenset[int],
        stop_strings: StopStrings,
        *,
        width: int,
    ) -> None:
        self._going = {
            place: listener
            for place, each in enumerate(batch)
            if (listener := each.listener) is not None
        }
        self._decode = decode
        self._final = final
        self._stop_strings = stop_strings
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Says what is new; returns that no answer has ended."""
        import torch

        newest = input_ids[:, -1].tolist()
        ended = self._stop_strings.ended_at
        for place in list(self._going):
            if newest[place] in self._final or (ended and ended[place] is not None):
                del self._going[place]  # what is left of it comes with the whole answer
        if self._going:
            tokens = input_ids[list(self._going), self._width :].tolist()
            starts = self._stop_strings.starts(tokens)
            for pieces, text, start in zip(
                self._going.values(), self._decode(tokens), starts, strict=True
            ):
                pieces.grow(text, start)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class StopStrings:
    """Ends an answer as soon as its text holds a stop string.

    Args:
        stop: The strings.
        decode: Turns lists of token ids into texts.
        width: Tokens of the padded prompts.
        least: New tokens at the start that are not looked at (`min_tokens`).

    Attributes:
        ended_at: Tokens of each answer when that happened; None where it did not.
    """

    def __init__(
        self, stop: Sequence[str], decode: Callable[[Any], list[str]], *, width: int, least: int
    ) -> None:
        self._stop = tuple(stop)
        self._decode = decode
        self._width = width
        self._least = least
        self._tail = max((len(text.encode()) for text in stop), default=0) + TAIL_MARGIN
        self._ended: torch.Tensor | None = None
        self.ended_at: list[int | None] = []

    def starts(self, answers: list[list[int]]) -> list[int]:
        """Returns where in each answer's text stop strings begin to count."""
        if not self._stop or not self._least:
            return [0] * len(answers)
        return [len(text) for text in self._decode([one[: self._least] for one in answers])]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Returns which answers have ended by now."""
        import torch

        if self._ended is None:
            self.ended_at = [None] * input_ids.shape[0]
            self._ended = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        tokens = input_ids.shape[1] - self._width
        if tokens <= self._least:
            return self._ended
        going = [place for place, ended in enumerate(self.ended_at) if ended is None]
        start = max(self._width + self._least, input_ids.shape[1] - self._tail)
        texts = self._decode(input_ids[going, start:].tolist())
        found = [
            place
            for place, text in zip(going, texts, strict=True)
            if any(stop in text for stop in self._stop)
        ]
        for place in found:
            self.ended_at[place] = tokens
        if found:
            self._ended[found] = True
        return self._ended


def cut_at_stop(text: str, stop: Sequence[str], start: int = 0) -> tuple[str, bool]:
    """Returns the text before the first stop string at or after `start`, and if there was one."""
    places = [place for each in stop if (place := text.find(each, start)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class LogprobRecorder:
    """Notes how likely the tokens of answers were; a distribution lives for one step only.

    Probabilities are the model's own: before penalties, temperature and the rest, as vLLM counts
    them by default; under structured outputs among the tokens that their form allows, as there too.

    `__call__` is a logits processor, `look` a stopping criterion that never stops.

    Args:
        top: How many of the likeliest tokens to keep at each place.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._newest: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []
        self._likeliest: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Notes the likeliest tokens; returns the logits as they are."""
        import torch

        self._newest = torch.log_softmax(scores.float(), dim=-1)
        if self._top:
            values, tokens = self._newest.topk(min(self._top, scores.shape[-1]), dim=-1)
            self._likeliest.append((tokens, values))
        return scores

    def look(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Notes the token that was taken; returns that no answer has ended."""
        import torch

        if self._newest is not None:
            self._chosen.append(self._newest.gather(1, input_ids[:, -1:]))
            self._newest = None
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def read(self, answers: Sequence[list[int]], tokenizer: Any) -> list[list[TokenLogprob]]:
        """Returns one entry for each token of each answer of the batch."""
        import torch

        chosen = torch.cat(self._chosen, dim=1).tolist()
        tokens = values = [[[] for _ in row] for row in chosen]
        if self._top:
            tokens = torch.stack([step[0] for step in self._likeliest], dim=1).tolist()
            values = torch.stack([step[1] for step in self._likeliest], dim=1).tolist()
        seen = {token for answer in answers for token in answer}
        seen.update(token for row in tokens for step in row for token in step)
        names = _token_texts(sorted(seen), tokenizer)
        return [
            [
                TokenLogprob(
                    names[token],
                    chosen[place][step],
                    [
                        (names[likely], value)
                        for likely, value in zip(
                            tokens[place][step], values[place][step], strict=True
                        )
                        if math.isfinite(value)  # a form may leave fewer tokens than asked for
                    ],
                )
                for step, token in enumerate(answer)
            ]
            for place, answer in enumerate(answers)
        ]


def _token_texts(tokens: list[int], tokenizer: Any) -> dict[int, str]:
    texts = tokenizer.batch_decode(
        [[token] for token in tokens],
        skip_special_tokens=False,
        clean_up_tokenization_spaces=False,
    )
    return dict(zip(tokens, texts, strict=True))
