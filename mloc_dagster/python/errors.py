"""What a run in this process ends with, if not with a result.

MlocError
└── TaskFailedError            a task failed; carries its id, and the rows that are there
KeyboardInterrupt
└── RunInterrupted             the run was interrupted; carries the id that goes on with it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mloc_dagster.errors import MlocError

if TYPE_CHECKING:
    from mloc_dagster.python.task_result import Result


class TaskFailedError(MlocError):
    """A task failed.

    Args:
        message: What `mloc run` says of it.
        task_id: The task.
        workflow_id: What `mloc.run(resume=…)` takes.
        failures: One message for each failed step, the first cause first.
        bad_input: Whether the first cause is something that the caller wrote or named.
        result: The rows that are there; None without any.
    """

    def __init__(
        self,
        message: str,
        *,
        task_id: str,
        workflow_id: str,
        failures: Sequence[str] = (),
        bad_input: bool = False,
        result: Result | None = None,
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.workflow_id = workflow_id
        self.failures = tuple(failures)
        self.bad_input = bad_input
        self.result = result


class RunInterrupted(KeyboardInterrupt):
    """A run was interrupted; its finished rows are kept.

    Args:
        workflow_id: What `mloc.run(resume=…)` takes.
        resume: The call that goes on with it.
    """

    def __init__(self, workflow_id: str, resume: str) -> None:
        super().__init__(f"finished rows are kept; go on with: {resume}")
        self.workflow_id = workflow_id


class TemplateWarning(UserWarning):
    """Something in a template has no effect, or asks for what this machine has not."""
