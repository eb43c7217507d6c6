"""What a template asks for and only the operator of a worker may allow: code beside weights."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema.engines import certain_engine
from mloc_dagster.schema.model import Model, ModelSource
from mloc_dagster.schema.task import Task, TrainingSpec
from mloc_dagster.settings import settings


def check_leave(tasks: Iterable[Task]) -> None:
    """Raises if any task of a template may not run here, before the first one has begun.

    Raises:
        TerminalError: If one asks to run code that comes with weights, and that is not allowed.
    """
    for task in tasks:
        model: Model | None = getattr(task.spec, "model", None)
        if model is None:
            continue
        trusts_remote_code(model.source, asked=_asks(model, task), task=task.name)


def _asks(model: Model, task: Task) -> bool:
    """Tells whether the engine that will run a task is told to run such code.

    Options of the other engine have no effect; where the worker chooses, it looks itself.
    """
    if isinstance(task.spec, TrainingSpec):
        return model.transformers.trust_remote_code
    match certain_engine(model, enforce_cpu=task.spec.enforce_cpu):
        case "vllm":
            return model.vllm.get("trust_remote_code") is True
        case "transformers":
            return model.transformers.trust_remote_code
        case None:
            return False


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
