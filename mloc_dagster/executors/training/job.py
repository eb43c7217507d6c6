"""What a worker hands to the process that trains: one file, `job.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from mloc_dagster.net.reach import Origin
from mloc_dagster.schema.output import CHECKPOINTS_NAME
from mloc_dagster.schema.task import TrainingSpec
from mloc_dagster.schema.task_type import spec_of


def _of_its_type(value: Any) -> Any:
    return spec_of(value) if isinstance(value, Mapping) else value


JOB_NAME = "job.json"
OUTBOX_NAME = "outbox"


class TrainingJob(BaseModel):
    """One attempt at a training.

    Attributes:
        task_id: The task.
        spec: What to do, with all references resolved.
        folder: Where the process may write: checkpoints, logs, the final weights. Local.
        rows: JSON lines in TRL's formats.
        eval_rows: Rows to measure on; None without an evaluation.
        start_from: Weights to start from instead of the model's own: a folder.
        resume_from: A checkpoint of this task to go on from: a folder.
        origin: Where the task comes from, which decides what it may read and contact.
        before: What an earlier attempt measured before it began; None to measure now.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task_id: str
    spec: Annotated[SerializeAsAny[TrainingSpec], BeforeValidator(_of_its_type)]
    folder: Path
    rows: Path
    eval_rows: Path | None = None
    start_from: Path | None = None
    resume_from: Path | None = None
    origin: Origin = "local"
    before: dict[str, float] | None = None

    @property
    def checkpoints(self) -> Path:
        """Where the trainer puts its checkpoints, and takes the oldest away."""
        return self.folder / CHECKPOINTS_NAME

    @property
    def outbox(self) -> Path:
        """Where complete checkpoints wait for the worker, which the trainer knows nothing of."""
        return self.folder / OUTBOX_NAME

    def write(self) -> Path:
        """Writes `job.json` into the job's folder; returns its path."""
        path = self.folder / JOB_NAME
        # What the template does not say is left to the trainer, whose defaults are others.
        path.write_text(self.model_dump_json(by_alias=True, exclude_unset=True))
        return path
