"""What an engine is: one descriptor, found by entry point, from which everything else follows.

A distribution registers its descriptor under the group `mloc_dagster.engines`, with the engine's
name; mloc's own come in the same way. `spec.model`, compiling, JSON Schema, docs, the choice of an
engine, what is loaded and what is reused know engines from here only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from pydantic import JsonValue

from mloc_dagster.plugins import ENGINES_GROUP, Registry
from mloc_dagster.schema.base import Block

Ability = Literal["generate", "embed", "score", "images", "adapters", "guided", "logprobs", "tools"]
"""`generate` text, `embed` rows as vectors, `score` how well two texts go together, read rows with
`images`, answer with LoRA `adapters`, hold answers to a form (`guided`), say how likely their
tokens were (`logprobs`), call `tools`."""

WEIGHTS = frozenset({"huggingface", "local", "builtin"})
"""Types of `model.source` that are weights to load; the others say who has them."""

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something in a task's spec that cannot be done.

    Attributes:
        path: Where below the spec it stands; what an engine refuses, below its own block.
        reason: Why not, and what would work.
        at_key: Whether the key itself is wrong, and not its value.
    """

    path: tuple[str | int, ...]
    reason: str
    at_key: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a task asks of its engine beside the engine's options.

    Attributes:
        certain: Whether the engine will run it wherever it runs.
        possible: Whether the engine may run it at all; else another one is certain.
        logprobs: How many likeliest tokens are kept at each place (`inference.logprobs`).
        gpus: GPUs that it asks for.
        enforce_cpu: Whether it keeps off GPUs.
        calls_tools: Whether its answers may be calls of tools.
        forces_calls: Whether they have to be (`inference.tool_choice`).
    """

    certain: bool
    possible: bool
    logprobs: int | None
    gpus: int
    enforce_cpu: bool
    calls_tools: bool = False
    forces_calls: bool = False


def _no_values(options: Any) -> Mapping[str, JsonValue]:
    return _NOTHING


def _no_refusals(options: Any, demand: Demand) -> Iterable[Refusal]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineType:
    """An engine.

    Attributes:
        name: What `model.engine` says, and the key of its options in `spec.model`; also the name
            of its entry point.
        label: What messages call it: `vLLM`.
        options: Its block in `spec.model`. Every option has a default; the first paragraph of the
            docstring describes the block. Options that name files, hosts or code are marked (see
            `schema.markers`).
        loader: What loads models, an `EngineLoader`, as `package.module:Class`. It is imported
            where a model is loaded or a choice is made, never where a template is compiled.
        abilities: What it can do; templates that want more are refused where it is certain, and
            it is not chosen for them where it is not.
        xgrammar_only: Whether a form is refused that xgrammar cannot enforce by itself.
        sources: Types of `model.source` that it can take a model from.
        order: Its place among the engines that a task may get which names none, the lowest first;
            None if it is to be named (`model.engine`, `MLOC_ENGINE`).
        runs_anywhere: Whether it runs on every machine that has its library.
        chosen_for_cpu: Whether a task with `enforce_cpu` may get it without naming it.
        claims: Options that no other engine can follow: one that is set chooses the engine, and
            is refused where another one is named.
        instead: What to write for options that other engines claim, by their name.
        shares: Takes its options; returns those that hold on other engines as well, as these
            call them.
        takes: Options of other engines' blocks that hold on this one where its own block has not
            the same (see `shares`).
        refuses: Takes its options and what else the task asks for; yields what it cannot do.
        batching: Options that neither what is loaded nor what is answered depends on.
        placing: Options that say how weights get to their device: no answer depends on them.
    """

    name: str
    label: str
    options: type[Block]
    loader: str
    abilities: frozenset[Ability] = frozenset({"generate"})
    xgrammar_only: bool = False
    sources: frozenset[str] = WEIGHTS
    order: int | None = None
    runs_anywhere: bool = False
    chosen_for_cpu: bool = True
    claims: tuple[str, ...] = ()
    instead: Mapping[str, str] = field(default=_NOTHING)
    shares: Callable[[Any], Mapping[str, JsonValue]] = _no_values
    takes: frozenset[str] = frozenset()
    refuses: Callable[[Any, Demand], Iterable[Refusal]] = _no_refusals
    batching: frozenset[str] = frozenset()
    placing: frozenset[str] = frozenset()

    @property
    def about(self) -> str:
        """What its block is, in one paragraph."""
        return " ".join((self.options.__doc__ or "").split("\n\n")[0].split())


def changed_options(options: Block, without: Collection[str] = ()) -> dict[str, JsonValue]:
    """Returns the options that differ from their defaults, sorted by name, as JSON.

    Args:
        options: An engine's block.
        without: Options that are left out.
    """
    found = options.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
    return dict(sorted(found.items()))


def engine_types() -> Mapping[str, EngineType]:
    """Returns every engine that can be used, by name, in the order in which they are chosen."""
    return _REGISTRY.known()


def find_engine(name: str) -> EngineType:
    """Returns the engine of a name.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions did, or the one that did cannot be loaded.
    """
    return _REGISTRY.find(name)


def _order(engine: EngineType) -> tuple[bool, int, str]:
    return engine.order is None, engine.order or 0, engine.name


def _refuse(given: EngineType, others: Collection[EngineType]) -> str | None:
    if given.name in ("source", "engine", "adapters", "auto"):
        return "has a name that means something else in `spec.model` or MLOC_ENGINE"
    for name, each in given.options.model_fields.items():
        if each.is_required():  # templates that do not name the engine have no block of it
            return f"has an option without a default: {name}"
    return None


_REGISTRY = Registry(ENGINES_GROUP, "engine", EngineType, _refuse, _order)
