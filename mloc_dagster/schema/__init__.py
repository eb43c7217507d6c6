"""The YAML as frozen types; here stands what authors of task types need."""

from mloc_dagster.schema.base import Block
from mloc_dagster.schema.task import ModelSpec, RowSpec, TrainingSpec
from mloc_dagster.schema.task_type import Idle, TaskType

__all__ = ["Block", "Idle", "ModelSpec", "RowSpec", "TaskType", "TrainingSpec"]
