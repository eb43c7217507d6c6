"""`training.json` and `responses.json` of a training: its summary, and what later stages read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from mloc_dagster.errors import IncompleteResultsError
from mloc_dagster.results.store import Folder
from mloc_dagster.schema import artifact_name

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


RESPONSES_NAME = "responses.json"
ARCHIVES_NAME = "archives"


def write_training_result(
    folder: Folder,
    summary: TrainingSummary,
    *,
    worker_id: str,
    archive: str | None = None,
    metadata: Mapping[str, JsonValue] | None = None,
    received_at: datetime | None = None,
) -> None:
    """Writes `responses.json`.

    Args:
        folder: The task's folder.
        summary: What the training left.
        worker_id: Who writes: `host:pid`.
        archive: The name of the archive with the final weights, below the folder, if there is one.
        metadata: Copied to the file.
        received_at: When the weights were there; the summary's time by default.
    """
    document = {
        "task_id": summary.task_id,
        "worker_id": worker_id,
        "metadata": metadata or {},
        "received_at": received_at or summary.finished_at,
        "result": training_result(folder.url, summary, archive),
    }
    folder.write_bytes(RESPONSES_NAME, msgspec.json.format(msgspec.json.encode(document)) + b"\n")


def training_result(url: str, summary: TrainingSummary, archive: str | None) -> dict[str, object]:
    """Returns the `result` of a training, with the keys that the old system's had.

    Args:
        url: The address of the task's folder.
        summary: What the training left.
        archive: The name of the archive with the final weights, below the folder.
    """
    metrics: dict[str, object] = {**summary.metrics}
    if summary.before is not None:
        metrics["before"] = summary.before
    if summary.after is not None:
        metrics["after"] = summary.after
    result: dict[str, object] = {
        "training_successful": True,
        "training_time_seconds": summary.seconds,
        "model_name": summary.model,
        "dataset_size": summary.dataset_size,
        "output_dir": url,
        "metrics": metrics,
    }
    if summary.final:
        key = summary.final  # `final_model` or `final_lora`
        result[f"{key}_path"] = f"{url}/{summary.final}"
        if archive is not None:
            result[f"{key}_archive_path"] = archive
            result[f"{key}_archive_url"] = _address(f"{url}/{archive}")
    return result


def artifact_names(artifacts: tuple[str, ...], summary: TrainingSummary) -> tuple[str, ...]:
    """Returns the artifacts by the names that they have here."""
    return tuple(artifact_name(name, summary.final) for name in artifacts)


def _address(path: str) -> str:
    return path if "://" in path else f"file://{path}"
