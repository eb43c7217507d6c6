"""Task type → task executor, through entry points: ours come in by the same door as anyone's."""

from __future__ import annotations

from functools import cache
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.executors.base import TaskExecutor
from mloc_dagster.executors.registered import registered_function
from mloc_dagster.plugins import entry_points
from mloc_dagster.schema.task import TASK_TYPES_GROUP


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
    create = registered_function(TASK_TYPES_GROUP, "task type", task_type)
    try:
        return create()
    except Exception as error:
        raise TerminalError(
            f"the task type {task_type!r} from {create.__module__} cannot be set up: "
            f"{type(error).__name__}: {error}"
        ) from error


def task_types() -> frozenset[str]:
    """Returns the task types that somebody registered, without importing any of them."""
    return frozenset(entry_points(group=TASK_TYPES_GROUP).names)
