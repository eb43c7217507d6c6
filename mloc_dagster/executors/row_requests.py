"""Rows as requests to an engine, and what becomes of a request as a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import islice

from mloc_dagster.executors.engines.protocol import (
    Answer,
    Completion,
    Engine,
    EngineRequest,
    Rendered,
)
from mloc_dagster.executors.prompts import RowBlock, RowOptions, is_blank
from mloc_dagster.results import InputRow, OutputRow, ToolCall, ToolCallDelta, failed_row
from mloc_dagster.schema import Inference, Pooling

Room = Callable[[int], int | None]
"""Takes the tokens of a row's prompt; returns how many it may write, None for any number. Raises
`ValueError` if the prompt is too long."""

WINDOW_ROWS = 64
"""Rows that are tokenised at once: enough for the tokenizer's threads, too few to stall a step."""


def answered_row(request: EngineRequest, completion: Completion, engine: Engine) -> OutputRow:
    """Returns the output of a row that has an answer."""
    answers, row = completion.answers, request.row
    several = len(answers) > 1
    calls = [kept_calls(each, request.sampling) for each in answers]
    return OutputRow(
        index=row.index,
        prompt=row.prompt,
        output=answers[0].text if answers else "",
        finish_reason=answers[0].finish_reason if answers else "stop",
        outputs=[each.text for each in answers] if several else None,
        finish_reasons=[each.finish_reason for each in answers] if several else None,
        tool_calls=(calls[0] or None) if answers else None,
        reasoning=answers[0].reasoning if answers else None,
        all_tool_calls=_of_several(calls),
        all_reasoning=_of_several([each.reasoning for each in answers]),
        reasoning_tokens=sum(each.reasoning_tokens for each in answers),
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=sum(each.tokens for each in answers),
        latency_s=completion.latency_s,
        engine=engine.label,
        custom_id=row.custom_id,
        embedding=completion.embedding,
        encoding=row.encoding,
        logprobs=_logprobs(completion),
        cached_tokens=completion.cached_tokens,
        padding_tokens=completion.padding_tokens,
        engine_s=completion.engine_s,
    )


def kept_calls(answer: Answer, block: Inference | None) -> list[ToolCall]:
    """Returns the calls of an answer, or the first one where only that is wanted."""
    return [each for place, each in enumerate(answer.tool_calls) if keeps_call(block, place)]


def keeps_call(block: Inference | None, place: int) -> bool:
    """Tells whether the call at a place of an answer is wanted."""
    return place == 0 or block is None or block.parallel_tool_calls


def whole_calls(calls: Iterable[ToolCall]) -> Iterator[ToolCallDelta]:
    """Yields calls as pieces, each as a whole, for engines that do not tell smaller ones."""
    for place, call in enumerate(calls):
        yield ToolCallDelta(place, call.id, call.function.name, call.function.arguments)


def _of_several[T](given: list[T]) -> list[T] | None:
    """Returns what several answers have, if one of them has anything."""
    return given if len(given) > 1 and any(given) else None


def failed_request(request: EngineRequest, reason: str, engine: Engine) -> OutputRow:
    """Returns the output of a row that the engine could not answer."""
    return failed_row(request.row, reason, engine.label, len(request.tokens))


def rendered_rows(
    given: Iterable[InputRow],
    options: RowOptions,
    seed: int,
    engine: Engine,
    refuse: Callable[[InputRow, str], None],
    room: Room = lambda _: None,
) -> Iterator[list[EngineRequest]]:
    """Yields what the engine can answer, rendering a window of rows when the engine wants more.

    Args:
        given: The rows.
        options: How to answer them.
        seed: The plan's.
        engine: The engine.
        refuse: Takes a row that no engine could answer, and why.
        room: How many tokens a row may write by its budget.
    """
    rows = iter(given)
    while window := list(islice(rows, WINDOW_ROWS)):
        ready: list[tuple[InputRow, RowBlock, Rendered]] = []
        for row in window:
            try:
                block = options.of(row)
                ready.append((row, block, _render(row, block, engine)))
            except ValueError as error:
                refuse(row, str(error))
        tokens = _tokens([rendered for _, _, rendered in ready], engine)
        requests: list[EngineRequest] = []
        for (row, block, rendered), ids in zip(ready, tokens, strict=True):
            if not ids:
                refuse(row, "the prompt is empty: it has no token at all")
                continue
            try:
                requests.append(_request(row, _within(block, room(len(ids))), rendered, ids, seed))
            except ValueError as error:
                refuse(row, str(error))
        yield requests


def _within(block: RowBlock, room: int | None) -> RowBlock:
    """Returns the block of a row that may write so many tokens, over all its answers.

    Raises:
        ValueError: If that is not even one for each answer.
    """
    if room is None or not isinstance(block, Inference) or room >= block.max_tokens * block.n:
        return block
    each = room // block.n
    if each < 1:
        raise ValueError("the prompt leaves no token for an answer that the row may spend")
    least = min(block.min_tokens, each)
    return block.model_copy(update={"max_tokens": each, "min_tokens": least})


def single_request(row: InputRow, block: Inference, seed: int, engine: Engine) -> EngineRequest:
    """Returns one row as a request.

    Raises:
        ValueError: If no engine could answer it.
    """
    rendered = _render(row, block, engine)
    (tokens,) = _tokens([rendered], engine)
    if not tokens:
        raise ValueError("the prompt is empty: it has no token at all")
    return EngineRequest(row, rendered, tokens, sampling=block, seed=seed, adapter=row.adapter)


def _tokens(rendered: list[Rendered], engine: Engine) -> list[list[int]]:
    """Returns the token ids of each; what wants special tokens is tokenised by itself."""
    found: list[list[int]] = [[] for _ in rendered]
    for special in (True, False):
        places = [place for place, each in enumerate(rendered) if each.special is special]
        texts = [rendered[place].text for place in places]
        for place, ids in zip(places, engine.tokenize(texts, special=special), strict=True):
            found[place] = ids
    return found


def _request(
    row: InputRow, block: RowBlock, rendered: Rendered, tokens: list[int], plan_seed: int
) -> EngineRequest:
    if not isinstance(block, Inference):
        pooling = block if isinstance(block, Pooling) else None
        return EngineRequest(row, rendered, tokens, pooling=pooling, adapter=row.adapter)
    seed = row_seed(block, plan_seed, row.index)
    return EngineRequest(row, rendered, tokens, sampling=block, seed=seed, adapter=row.adapter)


def row_seed(block: Inference, plan_seed: int, index: int) -> int:
    """Returns what seeds a row's answers.

    With a seed in the template equal rows have equal answers, as in vLLM. Without one each row
    has a stream of its own, which a retry repeats.
    """
    if block.seed is not None:
        return block.seed
    digest = blake2b(f"{plan_seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # vLLM's seeds are signed


def turn_seed(block: Inference, row_seed: int, turn: int) -> int:
    """Returns what seeds one turn of a row's trajectory; the same for all if the template says."""
    if block.seed is not None or not turn:
        return row_seed
    digest = blake2b(f"{row_seed}:{turn}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def worker_seed(block: Inference, seed: int, turn: int, place: int) -> int:
    """Returns what seeds the agent that answers a call, from what seeds the one that calls it."""
    if block.seed is not None:
        return seed
    digest = blake2b(f"{seed}:{turn}:{place}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def _render(row: InputRow, block: RowBlock, engine: Engine) -> Rendered:
    if row.error is not None:
        raise ValueError(row.error)
    if is_blank(row.prompt):
        raise ValueError("the prompt is empty")
    if row.verbatim and isinstance(row.prompt, str) and not isinstance(block, Pooling):
        return Rendered(row.prompt)
    return engine.render(row, block)


def _logprobs(completion: Completion) -> list[list] | None:
    given = [each.logprobs for each in completion.answers if each.logprobs is not None]
    return given or None
