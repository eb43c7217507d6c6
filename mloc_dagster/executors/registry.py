"""Task type → task executor, through entry points: ours come in by the same door as anyone's."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mloc_dagster.errors import TerminalError, UnknownNameError
from mloc_dagster.executors.base import TaskExecutor

GROUP = "mloc_dagster.task_types"


@cache
def task_executor(task_type: str) -> TaskExecutor[Any, Any]:
    """Returns the executor of a task type; one instance per process.

    Nothing is imported before the first call for that type.

    Args:
        task_type: A name registered under the entry-point group `mloc_dagster.task_types`.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions registered it, or its plug-in cannot be imported.
    """
    registered = entry_points(group=GROUP)
    found = list(registered.select(name=task_type))
    if not found:
        raise UnknownNameError("task type", task_type, registered.names)
    if len({entry.value for entry in found}) > 1:
        listed = " and ".join(_origin(entry) for entry in found)
        raise TerminalError(f"task type {task_type!r} is registered twice: by {listed}")
    return _create(found[0])


def task_types() -> frozenset[str]:
    """Returns the task types that somebody registered, without importing any of them."""
    return frozenset(entry_points(group=GROUP).names)


def _create(entry: EntryPoint) -> TaskExecutor[Any, Any]:
    try:
        return entry.load()()
    except Exception as error:
        raise TerminalError(
            f"task type {entry.name!r} comes from {_origin(entry)}, which cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def _origin(entry: EntryPoint) -> str:
    where = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "no distribution"
    return f"the distribution {where} ({entry.value})"
