"""Which engine runs a task's model here, and why."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pkgutil import resolve_name

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.engines.protocol import EngineLoader
from mloc_dagster.schema import (
    WEIGHTS,
    EngineType,
    ModelSpec,
    candidates,
    certain_engine,
    claim_on,
    engine_types,
    find_engine,
)
from mloc_dagster.settings import settings


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine, and the reason in words.

    Attributes:
        engine: Which.
        reason: Why, as the end of a line in the task's log.
    """

    engine: EngineType
    reason: str


@cache
def loader_of(engine: EngineType) -> EngineLoader:
    """Returns what loads models into an engine; one per process.

    Raises:
        TerminalError: If it cannot be imported or set up.
    """
    try:
        loader = resolve_name(engine.loader)(engine)
    except Exception as error:
        raise TerminalError(
            f"the engine {engine.name!r} cannot be set up: {engine.loader}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(loader, EngineLoader):
        raise TerminalError(
            f"the engine {engine.name!r} cannot be set up: {engine.loader} is no EngineLoader"
        )
    return loader


def choose_engine(spec: ModelSpec) -> EngineChoice:
    """Returns the engine that the template names, else the operator's, else the best that can run.

    Raises:
        TerminalError: If the template names one that cannot run here, or none can.
    """
    certain = certain_engine(spec)
    if certain is None:
        return _best_here(spec)
    obstacle = loader_of(certain).obstacle(spec)
    if obstacle is not None:
        raise TerminalError(f"the template asks for {certain.label}, but {obstacle}")
    return EngineChoice(certain, _why_certain(spec, certain))


def likely_engine(spec: ModelSpec) -> EngineType | None:
    """Returns the engine that a task gets on a machine with the hardware for it.

    Only libraries are looked for, for the machine that plans a task may have no GPU.
    """
    certain = certain_engine(spec)
    if certain is not None:
        return certain
    found = (each for each in candidates(spec, _preferred()) if loader_of(each).installed())
    return next(found, None)


def _preferred() -> str | None:
    name = settings().engine
    return None if name == "auto" else find_engine(name).name


def _best_here(spec: ModelSpec) -> EngineChoice:
    preferred = _preferred()
    obstacles: list[str] = []
    for each in candidates(spec, preferred):
        loader = loader_of(each)
        obstacle = loader.obstacle(spec)
        if obstacle is not None:
            obstacles.append(obstacle)
        elif each.name == preferred:
            return EngineChoice(each, "MLOC_ENGINE asks for it")
        else:
            return EngineChoice(each, "; ".join(obstacles) or loader.reason(spec))
    why = "; ".join(obstacles) or "none can do what it asks for"
    raise TerminalError(f"no engine can run this task here: {why}")


def _why_certain(spec: ModelSpec, engine: EngineType) -> str:
    if spec.model.engine is not None:
        return "the template asks for it"
    if spec.model.source.type not in WEIGHTS:
        return "model.source is an endpoint"
    if (claim := claim_on(spec.model)) is not None:
        return f"model.{engine.name}.{claim[1]} is its option"
    others = [each for each in engine_types().values() if each.order is not None]
    ruled_out = [each.label for each in others if not each.chosen_for_cpu]
    if spec.enforce_cpu and ruled_out:
        return f"enforce_cpu rules {' and '.join(ruled_out)} out"
    return "no other engine can run it"
