"""Task type → what computes it; see `schema.task_type`."""

from __future__ import annotations

from functools import cache
from typing import Any

from mloc_dagster.errors import TerminalError
from mloc_dagster.schema.task_type import find_task_type


@cache
def task_executor(name: str) -> Any:
    """Returns the `TaskExecutor` of a task type, of a training its `Trainer`; one per process.

    Args:
        name: The task type.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If it cannot be run or set up.
    """
    found = find_task_type(name)
    if found.executor is None:
        raise TerminalError(f"the task type {name!r} is not built yet")
    try:
        return found.executor()
    except Exception as error:
        raise TerminalError(
            f"the task type {name!r} from {found.executor.__module__} cannot be set up: "
            f"{type(error).__name__}: {error}"
        ) from error
