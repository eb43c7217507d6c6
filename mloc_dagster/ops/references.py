"""What travels between steps: small references, never rows."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class TaskRef(BaseModel):
    """Points to a task's folder.

    Attributes:
        task_id: The task, which names its folder below the results root.
        node: The stage or node it ran for.
        rows: Rows of its result.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    node: str
    rows: int
