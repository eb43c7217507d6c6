"""What an endpoint answers, as completions; its objects are those of the `openai` package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.executors.engines.protocol import Answer, Completion, EngineRequest
from mloc_dagster.results import FunctionCall, TokenLogprob, ToolCall
from mloc_dagster.schema import Inference, Pooling


class OddReplyError(Exception):
    """A reply that came with status 200 and is none: the endpoint's fault, or its proxy's."""


class RefusedRowError(Exception):
    """The endpoint answers other rows, and not this one."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What an endpoint says that a request took.

    Attributes:
        prompt: Tokens that it read.
        completion: Tokens that it wrote, over all answers.
        cached: Those of `prompt` that it had in a cache.
        reasoning: Those of `completion` that were thoughts.
        estimated: It does not say: they are counted by characters.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    reasoning: int = 0
    estimated: bool = False


def usage_of(reply: Any, request: EngineRequest, count: Callable[[str], int]) -> Usage:
    """Returns what a reply says of tokens, or an estimate.

    Args:
        reply: The endpoint's object.
        request: What was asked.
        count: Estimates the tokens of a text.
    """
    usage = getattr(reply, "usage", None)
    if usage is None or usage.prompt_tokens is None:
        texts = [_text(each) for each in getattr(reply, "choices", None) or ()]
        return Usage(len(request.tokens), sum(map(count, texts)), estimated=True)
    read = getattr(usage, "prompt_tokens_details", None)
    wrote = getattr(usage, "completion_tokens_details", None)
    return Usage(
        usage.prompt_tokens,
        getattr(usage, "completion_tokens", None) or 0,
        getattr(read, "cached_tokens", None) or 0,
        getattr(wrote, "reasoning_tokens", None) or 0,
    )


def completion_of(
    reply: Any, request: EngineRequest, usage: Usage, *, engine_s: float, latency_s: float
) -> Completion:
    """Returns a reply as a completion.

    Raises:
        RefusedRowError: If the endpoint's filter, or the model, refuses the row.
        OddReplyError: If it is no reply of the API.
    """
    if request.pooling is not None:
        return Completion(
            embedding=_vector(reply, request.pooling),
            prompt_tokens=usage.prompt,
            engine_s=engine_s,
            latency_s=latency_s,
        )
    block = request.sampling or Inference()
    choices = getattr(reply, "choices", None)
    if not isinstance(choices, Sequence) or len(choices) != block.draws:
        raise OddReplyError(f"it has {_described(reply)}, and not {block.draws} answers")
    choices = sorted(choices, key=lambda each: each.index)
    tokens = _shares(usage.completion, [_logprobs(each, block) for each in choices])
    thoughts = _evenly(usage.reasoning, len(choices))
    answers = [
        _answer(each, block, written, thought)
        for each, written, thought in zip(choices, tokens, thoughts, strict=True)
    ]
    if block.draws < block.n:  # greedy ones are all the same, and computed once
        copy = Answer(
            answers[0].text,
            answers[0].finish_reason,
            0,
            answers[0].logprobs,
            answers[0].tool_calls,
            answers[0].reasoning,
        )
        answers += [copy] * (block.n - block.draws)
    return Completion(
        tuple(answers),
        prompt_tokens=usage.prompt,
        cached_tokens=usage.cached,
        engine_s=engine_s,
        latency_s=latency_s,
    )


def _answer(choice: Any, block: Inference, tokens: int, thoughts: int) -> Answer:
    message = getattr(choice, "message", None)
    refusal = getattr(message, "refusal", None)
    if refusal:
        raise RefusedRowError(f"the model refuses: {refusal}")
    if choice.finish_reason == "content_filter":
        raise RefusedRowError("the endpoint's content filter cut the answer off")
    if choice.finish_reason in ("abort", "error"):
        raise OddReplyError(f"the answer ended with {choice.finish_reason!r}")
    calls = tuple(
        ToolCall(each.id, FunctionCall(each.function.name, each.function.arguments or "{}"))
        for each in getattr(message, "tool_calls", None) or ()
        if getattr(each, "function", None) is not None
    )
    ended = "length" if choice.finish_reason == "length" else "stop"
    return Answer(
        _text(choice),
        "tool_calls" if calls else ended,
        tokens,
        _logprobs(choice, block),
        calls,
        _reasoning(message),
        thoughts,
    )


def _text(choice: Any) -> str:
    message = getattr(choice, "message", None)
    return (choice.text if message is None else message.content) or ""


def _reasoning(message: Any) -> str | None:
    # Both names are in use: vLLM's and the hosted APIs'.
    for name in ("reasoning", "reasoning_content"):
        found = getattr(message, name, None)
        if isinstance(found, str) and found:
            return found
    return None


def _logprobs(choice: Any, block: Inference) -> list[TokenLogprob] | None:
    if block.logprobs is None:
        return None
    given = getattr(choice, "logprobs", None)
    if given is None:
        raise OddReplyError("it has no logprobs, which were asked for")
    if getattr(choice, "message", None) is None:
        return _text_logprobs(given, block.logprobs)
    return [
        TokenLogprob(
            each.token,
            each.logprob,
            _likeliest(
                ((top.token, top.logprob) for top in each.top_logprobs or ()), block.logprobs
            ),
        )
        for each in given.content or ()
    ]


def _text_logprobs(given: Any, wanted: int) -> list[TokenLogprob]:
    """Returns those of the API's older call, which has them in lists."""
    tops = given.top_logprobs or [{}] * len(given.tokens)
    return [
        TokenLogprob(token, value or 0.0, _likeliest((top or {}).items(), wanted))
        for token, value, top in zip(given.tokens, given.token_logprobs, tops, strict=True)
    ]


def _likeliest(given: Any, wanted: int) -> list[tuple[str, float]]:
    # Some servers write -9999 where a form allows fewer tokens than were asked for.
    found = [(token, value) for token, value in given if math.isfinite(value) and value > -9999]
    return sorted(found, key=lambda each: -each[1])[:wanted]


def _shares(total: int, logprobs: Sequence[Sequence[Any] | None]) -> list[int]:
    """Returns how many of an answer's tokens each of several answers has.

    The API tells the sum only; where log probabilities were asked for, they tell the rest.
    """
    counts = [len(each) for each in logprobs if each is not None]
    if len(counts) == len(logprobs) and sum(counts) == total:
        return counts
    return _evenly(total, len(logprobs))


def _evenly(total: int, parts: int) -> list[int]:
    each, more = divmod(total, parts)
    return [each + (place < more) for place in range(parts)]


def _vector(reply: Any, pooling: Pooling) -> list[float]:
    data = getattr(reply, "data", None)
    if not data or not isinstance(data[0].embedding, list):
        raise OddReplyError(f"it has {_described(reply)}, and no vector")
    vector = [float(each) for each in data[0].embedding]
    if not pooling.normalize:
        return vector
    length = math.sqrt(sum(each * each for each in vector))
    return [each / length for each in vector] if length else vector


def _described(reply: Any) -> str:
    if isinstance(reply, str):
        return f"the text {reply[:200]!r}"
    error = getattr(reply, "error", None)
    if error:
        return f"an error: {str(error)[:500]}"
    return f"{len(getattr(reply, 'choices', None) or ())} answers"
