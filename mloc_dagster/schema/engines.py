"""What engines can do with a task, as far as that is known before it runs.

All of it follows from the engines' descriptors: the template's compiler refuses by it, and the
choice of an engine relies on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pydantic import JsonValue

from mloc_dagster.schema.answer_forms import form_problems
from mloc_dagster.schema.base import Block, known_names
from mloc_dagster.schema.data import ChatMessage, DatasetData, ImagePart, ListData
from mloc_dagster.schema.engine_type import (
    Ability,
    Demand,
    EngineType,
    Refusal,
    engine_types,
    find_engine,
)
from mloc_dagster.schema.inference import Inference
from mloc_dagster.schema.model import Adapter, Model, ModelSource
from mloc_dagster.schema.task import ModelSpec
from mloc_dagster.schema.tools import NamedToolChoice

_CANNOT: Mapping[Ability, str] = {
    "generate": "generates no text",
    "embed": "makes no vectors",
    "score": "scores no pairs of texts",
    "images": "reads no images",
    "adapters": "takes no adapters",
    "guided": "cannot hold answers to a form",
    "logprobs": "does not say how likely tokens were",
    "tools": "calls no tools",
}


def candidates(spec: ModelSpec, preferred: str | None = None) -> list[EngineType]:
    """Returns the engines that a task may get which names none, the best first.

    Args:
        spec: The task.
        preferred: The engine to put first, whether or not it has a place of its own.
    """
    needed = _needs(spec).keys()
    fitting = [
        each
        for each in engine_types().values()
        if (each.order is not None or each.name == preferred)
        and spec.model.source.type in each.sources
        and (each.chosen_for_cpu or not spec.enforce_cpu)
        and needed <= each.abilities
    ]
    return sorted(fitting, key=lambda each: each.name != preferred)


def claim_on(model: Model) -> tuple[EngineType, str] | None:
    """Returns the engine that alone can follow one of the options, with that option."""
    for engine, options in model.engine_blocks().items():
        for name in engine.claims:
            if getattr(options, name, None):
                return engine, name
    return None


def certain_engine(spec: ModelSpec) -> EngineType | None:
    """Returns the engine that will run a task wherever it runs; None when that depends."""
    if spec.model.engine is not None:
        return find_engine(spec.model.engine)
    able = [each for each in engine_types().values() if spec.model.source.type in each.sources]
    if len(able) == 1:
        return able[0]
    if (claim := claim_on(spec.model)) is not None:
        return claim[0]
    first = next(iter(candidates(spec)), None)
    return first if first is not None and first.runs_anywhere else None


def shared_options(model: Model, engine: EngineType) -> dict[str, JsonValue]:
    """Returns the options of other engines' blocks that hold on an engine; see `takes`."""
    own = _given(model.options(engine.name, engine.options))
    found: dict[str, JsonValue] = {}
    for other, options in model.engine_blocks().items():
        if other is not engine:
            shared = other.shares(options)
            taken = (engine.takes & shared.keys()) - own - found.keys()
            found |= {name: shared[name] for name in taken}
    return found


def idle_options(model: Model, engine: EngineType) -> frozenset[tuple[str, str]]:
    """Returns the options of other engines that mean nothing to the one that runs a task.

    Returns:
        Each as the block's name and the option's.
    """
    held = shared_options(model, engine).keys()
    return frozenset(
        (other.name, name)
        for other, options in model.engine_blocks().items()
        if other is not engine
        for name in _given(options) - (held & other.shares(options).keys())
        if not (name in other.claims and getattr(options, name))
    )


def adapter_name(adapter: Adapter) -> str:
    """Returns what rows call an adapter: its name, or the last part of its place."""
    if adapter.name is not None:
        return adapter.name
    return PurePosixPath(urlsplit(adapter.path or adapter.url or "").path).name


def refusals(spec: ModelSpec) -> Iterator[Refusal]:
    """Yields what no engine can do with a task, or not the one that is certain."""
    engine = certain_engine(spec)
    block = spec.row_block
    if isinstance(block, Inference):
        for each in refused_in_inference(block, engine):
            yield Refusal((spec.block_name, *each.path), each.reason)
    yield from _refused_adapters(spec.model.adapters)
    if engine is not None:
        yield from _refused_source(spec.model.source, engine)
        for ability, path in _needs(spec).items():
            if ability not in engine.abilities:
                yield Refusal(path, f"{engine.label} {_CANNOT[ability]}")
        yield from _refused_claims(spec.model, engine)
    blocks = spec.model.engine_blocks()
    if engine is not None:
        blocks[engine] = spec.model.options(engine.name, engine.options)
    for each, options in blocks.items():
        for refusal in each.refuses(options, _demand(spec, each, engine)):
            yield Refusal(("model", each.name, *refusal.path), refusal.reason, refusal.at_key)


def refused_in_inference(block: Inference, engine: EngineType | None) -> Iterator[Refusal]:
    """Yields what no engine can do with an `inference` block, or not the one that is certain."""
    if block.min_tokens > block.max_tokens:
        reason = f"min_tokens {block.min_tokens} is more than max_tokens {block.max_tokens}"
        yield Refusal(("min_tokens",), reason)
    for place, text in enumerate(block.stop):
        if not text:
            yield Refusal(("stop", place), "an empty stop string would end every answer at once")
    yield from _refused_tools(block)
    if block.structured_outputs is not None:
        for name in ("min_tokens", "ignore_eos"):
            if getattr(block, name):
                reason = f"{name} cannot be kept with structured_outputs: their form ends an answer"
                yield Refusal((name,), reason)
        for problem in form_problems(block.structured_outputs, engine):
            yield Refusal(("structured_outputs", *problem.path), problem.reason)


def _refused_tools(block: Inference) -> Iterator[Refusal]:
    names = [each.function.name for each in block.tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            reason = f"{name!r} is the name of two functions"
            yield Refusal(("tools", place, "function", "name"), reason)
    if isinstance(block.tool_choice, NamedToolChoice):
        wanted = block.tool_choice.function.name
        if wanted not in names:
            reason = f"{wanted!r} is none of the tools{known_names(wanted, names, 'tools')}"
            yield Refusal(("tool_choice", "function", "name"), reason)
    elif block.tool_choice == "required" and not names:
        yield Refusal(("tool_choice",), "'required' needs tools to choose from")
    for name in ("min_tokens", "ignore_eos") if block.forces_calls else ():
        if getattr(block, name):
            reason = f"{name} cannot be kept where answers have to be calls: these end an answer"
            yield Refusal((name,), reason)
    if block.calls_tools and block.structured_outputs is not None:
        reason = "a call of a tool cannot have the form that structured_outputs ask for"
        yield Refusal(("structured_outputs",), f"{reason}: leave out one of them, or tools: none")


def _refused_source(source: ModelSource, engine: EngineType) -> Iterator[Refusal]:
    if source.type not in engine.sources:
        able = [each.name for each in engine_types().values() if source.type in each.sources]
        reason = (
            f"{engine.label} takes no model of type {source.type}: remove engine, or name "
            f"{' or '.join(able)}"
        )
        yield Refusal(("model", "engine"), reason)


def _refused_adapters(adapters: tuple[Adapter, ...]) -> Iterator[Refusal]:
    named: dict[str, int] = {}
    for place, adapter in enumerate(adapters):
        path = ("model", "adapters", place)
        if (adapter.path is None) == (adapter.url is None):
            yield Refusal(path, "give either path or url")
            continue
        name = adapter_name(adapter)
        if adapter.apply == "request" and name in named:
            reason = (
                f"adapters {named[name]} and {place} are both called {name!r}: give each a name"
            )
            yield Refusal(path, reason)
        named.setdefault(name, place)


def _refused_claims(model: Model, engine: EngineType) -> Iterator[Refusal]:
    for other, options in model.engine_blocks().items():
        for name in other.claims if other is not engine else ():
            if getattr(options, name, None):
                instead = engine.instead.get(name)
                what = f"{engine.label} has {instead}" if instead else f"{engine.label} has none"
                yield Refusal(("model", other.name, name), f"{name} is for {other.label}: {what}")


def _needs(spec: ModelSpec) -> dict[Ability, tuple[str, ...]]:
    """Returns the abilities that a task needs, each with where the template asks for it."""
    found: dict[Ability, tuple[str, ...]] = {spec.ability: ("model", "engine")}
    if spec.model.adapters:
        found["adapters"] = ("model", "adapters")
    if isinstance(spec.data, DatasetData) and spec.data.image_columns:
        found["images"] = ("data", "image_columns")
    if isinstance(spec.data, ListData) and any(map(_shows_images, spec.data.items)):
        found["images"] = ("data", "items")
    block = spec.row_block
    if isinstance(block, Inference):
        if block.structured_outputs is not None:
            found["guided"] = (spec.block_name, "structured_outputs")
        if block.logprobs is not None:
            found["logprobs"] = (spec.block_name, "logprobs")
    if spec.calls_tools:
        found["tools"] = (spec.tools_block, "tools")
    return found


def _shows_images(item: str | tuple[ChatMessage, ...]) -> bool:
    return not isinstance(item, str) and any(
        isinstance(part, ImagePart) for message in item for part in message.content or ()
    )


def _demand(spec: ModelSpec, engine: EngineType, certain: EngineType | None) -> Demand:
    block = spec.row_block
    return Demand(
        certain=certain is engine,
        possible=certain in (None, engine),
        logprobs=block.logprobs if isinstance(block, Inference) else None,
        gpus=spec.resources.hardware.gpu.count,
        enforce_cpu=spec.enforce_cpu,
        calls_tools=isinstance(block, Inference) and block.calls_tools,
        forces_calls=isinstance(block, Inference) and block.forces_calls,
    )


def _given(options: Block) -> set[str]:
    return options.model_fields_set | (options.model_extra or {}).keys()
