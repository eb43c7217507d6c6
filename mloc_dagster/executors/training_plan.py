"""The plan of a training: its rows written once, in the form that trainers read, and one shard."""

from __future__ import annotations

from mloc_dagster.data.training_rows import (
    TRAINING_ROWS_NAME,
    TrainingInputSummary,
    write_evaluation_rows,
    write_training_rows,
)
from mloc_dagster.errors import DataError
from mloc_dagster.planning.plan import Chunk, Plan
from mloc_dagster.planning.shards import cut_shards
from mloc_dagster.results.plan_file import write_plan
from mloc_dagster.results.store import Folder
from mloc_dagster.schema.task import TrainingSpec

BAD_ROWS_NAME = "input/bad-rows.json"


def plan_training(folder: Folder, task_id: str, spec: TrainingSpec) -> Plan:
    """Writes a training's rows and plan.

    Args:
        folder: The task's folder.
        task_id: The task.
        spec: What is trained, on what.

    Raises:
        DataError: If rows are missing or unreadable, or more than its budget cannot be used.
    """
    if spec.evaluation is not None:
        write_evaluation_rows(spec.evaluation, spec.method, folder)
    written = write_training_rows(spec.data, spec.method, folder)
    if not written.rows:
        raise DataError(f"there is nothing to train on: no row of {written.source} can be used")
    folder.write_bytes(BAD_ROWS_NAME, written.model_dump_json().encode())
    plan = Plan(
        task_id=task_id,
        source=written.source,
        rows=written.rows,
        data_version=written.data_version,
        seed=spec.training.seed,
        chunks=(Chunk(name=TRAINING_ROWS_NAME, start=0, rows=written.rows),),
        shards=tuple(cut_shards(task_id, written.rows, 1)),
    )
    write_plan(folder, plan)
    return plan


def bad_row_count(folder: Folder) -> int:
    """Returns how many rows of a training's input could not be used."""
    return TrainingInputSummary.model_validate_json(folder.read_bytes(BAD_ROWS_NAME)).bad
