"""The template's `inference` block in vLLM's words, and vLLM's outputs in ours."""

from __future__ import annotations

import json
import math
from typing import Any

from mloc_dagster.executors.engine import Answer, Completion, EngineRequest
from mloc_dagster.results.rows import TokenLogprob
from mloc_dagster.schema.inference import Inference, StructuredOutputs

FINISHED = ("stop", "length")


def sampling_params(inference: Inference, seed: int, room: int) -> Any:
    """Returns vLLM's `SamplingParams` for one request.

    Args:
        inference: How to sample.
        seed: Seeds the request's own generator; unused when greedy.
        room: Tokens that fit behind the prompt.

    Raises:
        ValueError: If vLLM refuses a value.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    max_tokens = min(inference.max_tokens, room)
    return SamplingParams(
        n=inference.draws,  # vLLM refuses several greedy answers
        temperature=0.0 if inference.greedy else inference.temperature,
        top_p=inference.top_p,
        top_k=inference.top_k,
        min_p=inference.min_p,
        max_tokens=max_tokens,
        min_tokens=min(inference.min_tokens, max_tokens),
        stop=list(inference.stop),
        stop_token_ids=list(inference.stop_token_ids),
        ignore_eos=inference.ignore_eos,
        seed=None if inference.greedy else seed % 2**63,  # to vLLM, -1 is no seed at all
        repetition_penalty=inference.repetition_penalty,
        presence_penalty=inference.presence_penalty,
        frequency_penalty=inference.frequency_penalty,
        skip_special_tokens=inference.skip_special_tokens,
        logprobs=inference.logprobs,
        structured_outputs=_structured(inference.structured_outputs),
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # these are this request's alone
    )


def _structured(form: StructuredOutputs | None) -> Any:
    if form is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(
        json=None if form.json_schema is None else json.dumps(form.json_schema),
        json_object=form.json_object,
        regex=form.regex,
        choice=None if form.choice is None else list(form.choice),
        grammar=form.grammar,
    )


def completion_of(
    request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
) -> Completion:
    """Returns a finished `RequestOutput` as a completion.

    Raises:
        ValueError: If vLLM gave the request up.
    """
    for each in output.outputs:
        if each.finish_reason not in FINISHED:
            raise ValueError(f"vLLM gave this row up ({each.finish_reason})")
    answers = tuple(
        Answer(
            text=each.text,
            finish_reason=each.finish_reason,
            tokens=len(each.token_ids),
            logprobs=_logprobs(request, each),
        )
        for each in output.outputs
    )
    sampling = request.sampling
    return Completion(
        answers=answers if sampling is None else answers * (sampling.n // sampling.draws),
        prompt_tokens=len(output.prompt_token_ids or ()),
        cached_tokens=output.num_cached_tokens or 0,
        engine_s=engine_s,
        latency_s=latency_s,
    )


def _logprobs(request: EngineRequest, output: Any) -> list[TokenLogprob] | None:
    wanted = request.sampling.logprobs if request.sampling is not None else None
    if wanted is None or output.logprobs is None:
        return None
    return [
        _token_logprob(token, at, wanted)
        for token, at in zip(output.token_ids, output.logprobs, strict=True)
    ]


def _token_logprob(token: int, candidates: Any, wanted: int) -> TokenLogprob:
    """Returns one token's entry.

    Args:
        token: The token that was taken.
        candidates: vLLM's `Logprob` by token id: the one taken and the `wanted` likeliest.
        wanted: How many of the likeliest to keep.
    """
    taken = candidates[token]
    likeliest = sorted(candidates.values(), key=lambda each: each.rank or 0)[:wanted]
    return TokenLogprob(
        token=taken.decoded_token or "",
        logprob=taken.logprob,
        top=[
            (each.decoded_token or "", each.logprob)
            for each in likeliest
            if math.isfinite(each.logprob)  # a form may leave fewer tokens than asked for
        ],
    )
