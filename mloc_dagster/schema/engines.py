"""What each engine can do with a task's blocks, as far as that is known before it runs.

The template's compiler refuses by this table; engines rely on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from mloc_dagster.schema.answer_forms import Path, form_problems
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.model import Adapter, Model

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


def without_effect(model: Model, engine: EngineName | None) -> Iterator[Refusal]:
    """Yields blocks of options that the certain engine does not read."""
    if engine == "transformers" and model.vllm:
        yield ("vllm",), "model.vllm has no effect: this task runs on transformers"
    if (
        engine == "vllm"
        and model.transformers.model_fields_set
        and not model.transformers.quantised
    ):
        yield ("transformers",), "model.transformers has no effect: this task runs on vLLM"
