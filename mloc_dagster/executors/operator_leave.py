"""What a template asks for and only the operator of a worker may allow: code beside weights."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema.engines import certain_engine
from mloc_dagster.schema.model import ModelSource
from mloc_dagster.schema.task import ModelSpec, Task, TrainingSpec
from mloc_dagster.settings import settings


def check_leave(tasks: Iterable[Task]) -> None:
    """Raises if any task of a template may not run here, before the first one has begun.

    Raises:
        TerminalError: If one asks to run code that comes with weights, and that is not allowed.
    """
    for task in tasks:
        if isinstance(task.spec, ModelSpec | TrainingSpec):
            trusts_remote_code(task.spec.model.source, asked=_asks(task.spec), task=task.name)


def _asks(spec: ModelSpec | TrainingSpec) -> bool:
    """Tells whether the engine that will run a task is told to run such code.

    Options of the other engines have no effect; where the worker chooses, it looks itself.
    """
    if isinstance(spec, TrainingSpec):
        return spec.model.transformers.trust_remote_code
    engine = certain_engine(spec)
    if engine is None:
        return False
    options = spec.model.options(engine.name, engine.options)
    return getattr(options, "trust_remote_code", False) is True


def trusts_remote_code(source: ModelSource, *, asked: bool, task: str = "") -> bool:
    """Returns whether code that comes with the weights may run.

    Args:
        source: The model.
        asked: Whether the engine's own options ask for it.
        task: The stage or node that asks, where there are several.

    Raises:
        TerminalError: If the template asks for it and the operator has not allowed it.
    """
    asked = asked or source.trust_remote_code
    if asked and not settings().trust_remote_code:
        who = f"{task!r}" if task else "the template"
        raise TerminalError(
            f"{who} asks to run code that comes with {source.identifier!r} "
            "(trust_remote_code), which this worker does not allow: if you trust that code, set "
            "MLOC_TRUST_REMOTE_CODE=true where the worker starts"
        )
    return asked
