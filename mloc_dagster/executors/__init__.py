"""What computes tasks; here stands what authors of task types need."""

from mloc_dagster.executors.base import (
    ModelKey,
    RowExecutor,
    ShardContext,
    ShardInput,
    TaskExecutor,
)
from mloc_dagster.executors.prompts import last_user_text
from mloc_dagster.results.rows import InputRow, OutputRow, failed_row

__all__ = [
    "InputRow",
    "ModelKey",
    "OutputRow",
    "RowExecutor",
    "ShardContext",
    "ShardInput",
    "TaskExecutor",
    "failed_row",
    "last_user_text",
]
