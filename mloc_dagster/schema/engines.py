"""What each engine can do with a task's blocks, as far as that is known before it runs.

The template's compiler refuses by this table; engines rely on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from pydantic import JsonValue

from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.answer_forms import Path, form_problems
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.model import Adapter, Dtype, Model, TransformersOptions

EngineName = Literal["vllm", "transformers"]

VLLM_MAX_LOGPROBS = 20
"""What vLLM allows unless its argument `max_logprobs` says otherwise."""

Refusal = tuple[Path, str]
"""Where below the block something stands that cannot be done, and why not."""


def certain_engine(model: Model, *, enforce_cpu: bool) -> EngineName | None:
    """Returns the engine that will run a task wherever it runs; None when that depends."""
    if model.engine is None and (enforce_cpu or model.transformers.quantised):
        return "transformers"
    return model.engine


def adapter_name(adapter: Adapter) -> str:
    """Returns what rows call an adapter: its name, or the last part of its place."""
    if adapter.name is not None:
        return adapter.name
    return PurePosixPath(urlsplit(adapter.path or adapter.url or "").path).name


def refused_in_inference(block: Inference, engine: EngineName | None) -> Iterator[Refusal]:
    """Yields what no engine can do with an `inference` block, or not the one that is certain."""
    if block.min_tokens > block.max_tokens:
        reason = f"min_tokens {block.min_tokens} is more than max_tokens {block.max_tokens}"
        yield ("min_tokens",), reason
    for place, text in enumerate(block.stop):
        if not text:
            yield ("stop", place), "an empty stop string would end every answer at once"
    if block.structured_outputs is not None:
        yield from _refused_beside_a_form(block)
        for problem in form_problems(block.structured_outputs, engine):
            yield ("structured_outputs", *problem.path), problem.reason


def _refused_beside_a_form(block: Inference) -> Iterator[Refusal]:
    if block.min_tokens:
        reason = "min_tokens cannot be kept with structured_outputs: their form ends an answer"
        yield ("min_tokens",), reason
    if block.ignore_eos:
        reason = "ignore_eos cannot be kept with structured_outputs: their form ends an answer"
        yield ("ignore_eos",), reason


def refused_in_model(
    model: Model, engine: EngineName | None, *, logprobs: int | None = None
) -> Iterator[Refusal]:
    """Yields what no engine can do with a `model` block, or not the one that is certain.

    Args:
        model: The block.
        engine: The engine, where it is certain.
        logprobs: What `inference.logprobs` asks for.
    """
    yield from _refused_adapters(model.adapters)
    if engine == "vllm" and (option := model.transformers.quantised):
        reason = f"{option} is for transformers: vLLM has model.vllm.quantization: bitsandbytes"
        yield ("transformers", option), reason
    dtype = model.vllm.get("dtype")
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        reason = f"unknown precision {dtype!r}{nearest_hint(str(dtype), DTYPES)}"
        yield ("vllm", "dtype"), reason
    most = model.vllm.get("max_logprobs", VLLM_MAX_LOGPROBS)
    if engine == "vllm" and isinstance(most, int) and 0 <= most < (logprobs or 0):
        reason = f"inference.logprobs asks for {logprobs}, and max_logprobs allows {most}"
        yield ("vllm", "max_logprobs"), reason


def _refused_adapters(adapters: tuple[Adapter, ...]) -> Iterator[Refusal]:
    named: dict[str, int] = {}
    for place, adapter in enumerate(adapters):
        if (adapter.path is None) == (adapter.url is None):
            yield ("adapters", place), "give either path or url"
            continue
        name = adapter_name(adapter)
        if adapter.apply == "request" and name in named:
            reason = (
                f"adapters {named[name]} and {place} are both called {name!r}: give each a name"
            )
            yield ("adapters", place), reason
        named.setdefault(name, place)


DTYPES: Mapping[str, Dtype] = {
    "auto": "auto",
    "half": "float16",
    "float16": "float16",
    "bfloat16": "bfloat16",
    "float": "float32",
    "float32": "float32",
}
"""What vLLM calls a precision of weights → what transformers calls it."""


def transformers_options(model: Model) -> TransformersOptions:
    """Returns how transformers loads a model: its own options, and vLLM's `dtype` without one."""
    dtype = DTYPES.get(str(model.vllm.get("dtype")))
    if dtype is None or "dtype" in model.transformers.model_fields_set:
        return model.transformers
    return model.transformers.model_copy(update={"dtype": dtype})


def vllm_arguments(model: Model) -> dict[str, JsonValue]:
    """Returns vLLM's arguments: the template's own, and transformers' `dtype` without one."""
    if model.transformers.dtype == "auto":  # each engine's own default
        return dict(model.vllm)
    return {"dtype": model.transformers.dtype, **model.vllm}


def max_model_len(model: Model) -> int | None:
    """Returns how many tokens of prompt and answer the template allows; None without a limit."""
    most = model.vllm.get("max_model_len")
    return most if isinstance(most, int) and most > 0 else None


def idle_options(model: Model, engine: EngineName | None) -> frozenset[tuple[str, str]]:
    """Returns the options of the other engine that mean nothing to the one that runs a task.

    Args:
        model: The block.
        engine: The engine; None when either may run it, and each has its own options.

    Returns:
        Each as the block's name and the option's.
    """
    if engine == "transformers":
        shared = {"dtype"} if "dtype" not in model.transformers.model_fields_set else set[str]()
        if max_model_len(model) is not None:
            shared.add("max_model_len")
        return frozenset(("vllm", name) for name in model.vllm.keys() - shared)
    if engine == "vllm":
        shared = {"dtype"} if "dtype" not in model.vllm else set[str]()
        quantised = {"load_in_4bit", "load_in_8bit"} if model.transformers.quantised else set[str]()
        given = model.transformers.model_fields_set - shared - quantised
        return frozenset(("transformers", name) for name in given)
    return frozenset()
