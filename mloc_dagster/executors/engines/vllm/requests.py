"""Rows in vLLM's words, sampling and pictures included, and vLLM's outputs in ours."""

from __future__ import annotations

import json
import math
from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.engines.protocol import Answer, Completion, EngineRequest, Rendered
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


def sees(llm: Any) -> bool:
    """Tells whether vLLM's engine `llm` runs a model that takes more than text."""
    return llm.model_config.is_multimodal_model


def processor_template(llm: Any) -> str | None:
    """Returns the chat template that only the model's processor has; None where there is none.

    It cannot be set on vLLM's tokenizer, which renders with copies of itself.
    """
    if not sees(llm) or llm.get_tokenizer().chat_template:
        return None
    from vllm.transformers_utils.processor import cached_processor_from_config

    return getattr(cached_processor_from_config(llm.model_config), "chat_template", None)


def picture_prompt(llm: Any, rendered: Rendered) -> Any:
    """Returns what vLLM takes as the prompt of a row with pictures.

    Raises:
        ValueError: If the model takes none, or not these.
    """
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    prompt = {
        "prompt": rendered.text,
        "multi_modal_data": {"image": list(rendered.images)},
        "multi_modal_uuids": {"image": list(rendered.image_ids)},
    }
    renderer = llm.renderer
    options = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=rendered.special)
    return renderer.render_cmpl([parse_model_prompt(llm.model_config, prompt)], options)[0]


def refuse_merging(place: str, **common: Any) -> None:
    """Raises for a model that sees: merged, it has names for its weights that vLLM cannot read.

    Args:
        place: The hub's id, or a folder.
        common: What `from_pretrained` is to know.

    Raises:
        InputError: If the model has a vision tower.
    """
    from transformers import AutoConfig

    if getattr(AutoConfig.from_pretrained(place, **common), "vision_config", None) is not None:
        raise InputError(
            f"model.adapters: under vLLM no adapter can be merged into {place!r}, a model that "
            "sees: give it one adapter, or `apply: request`, or use `engine: transformers`"
        )
