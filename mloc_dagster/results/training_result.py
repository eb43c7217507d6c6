"""`responses.json` of a training: what later stages and other programs read of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from pydantic import JsonValue

from mloc_dagster.results.store import Folder
from mloc_dagster.results.training_summary import TrainingSummary
from mloc_dagster.schema.output import artifact_name

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
