"""`training.json`: what a training left, at a glance."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import AwareDatetime, BaseModel, ConfigDict

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.results.store import Folder

TRAINING_NAME = "training.json"
BEFORE_NAME = "evaluation-before.json"
"""What the model was worth before its training: measured once, whatever follows."""


class TrainingSummary(BaseModel):
    """What a training left.

    Attributes:
        task_id: The task.
        task_type: The method.
        model: What was trained.
        model_revision: Which weights of it.
        source: Where the rows came from.
        data_version: Hex sha256 over them.
        dataset_size: Rows that it trained on.
        bad_rows: Rows of the input that could not be used.
        steps: Optimiser steps.
        resumed_step: The one that the attempt that finished it went on from; 0 for none.
        seconds: Wall seconds of the attempt that finished it.
        metrics: Closing figures, named as the trainer names them.
        history: What was logged, in order; each entry has its `step`.
        before: What the model was worth before.
        after: What it was worth after.
        gate: Whether and why the model is handed on; empty without a gate.
        passed: Whether it is.
        final: The folder with the final weights, below the task's; empty if none were kept.
        device: What it ran on.
        worker: Who finished it.
        started_at: When that attempt began.
        finished_at: When the final weights were there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    task_id: str
    task_type: str
    model: str
    model_revision: str
    source: str
    data_version: str
    dataset_size: int
    bad_rows: int
    steps: int
    resumed_step: int = 0
    seconds: float
    metrics: dict[str, float]
    history: tuple[dict[str, float], ...]
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None
    gate: str = ""
    passed: bool = True
    final: str
    device: str
    worker: str
    started_at: AwareDatetime
    finished_at: AwareDatetime

    @property
    def loss(self) -> float | None:
        """The last loss that was logged."""
        return next((each["loss"] for each in reversed(self.history) if "loss" in each), None)

    def series(self, name: str) -> list[tuple[float, float]]:
        """Returns the steps and values at which something was logged."""
        return [(each["step"], each[name]) for each in self.history if name in each]


def write_training(folder: Folder, summary: TrainingSummary) -> None:
    """Writes `training.json`: from then on the training is done."""
    folder.write_bytes(TRAINING_NAME, summary.model_dump_json(indent=2).encode() + b"\n")


def read_training(folder: Folder) -> TrainingSummary:
    """Reads `training.json`.

    Raises:
        IncompleteResultsError: If the training is not done.
    """
    try:
        return TrainingSummary.model_validate_json(folder.read_bytes(TRAINING_NAME))
    except FileNotFoundError:
        raise IncompleteResultsError(
            f"{folder.url} has no {TRAINING_NAME}: its training is not done"
        ) from None


def compared(
    before: Mapping[str, float] | None, after: Mapping[str, float] | None
) -> dict[str, tuple[float | None, float]]:
    """Returns each metric with its values before and after."""
    known = before or {}
    return {name: (known.get(name), value) for name, value in (after or {}).items()}
