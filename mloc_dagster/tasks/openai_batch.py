"""The template that a batch in OpenAI's format stands for, whatever brought the batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.models import BUILTIN_MODELS

BATCH_NAME = "batch"
"""The template's name."""


def model_of(name: str) -> dict[str, JsonValue]:
    """Returns the `model` block of a template for a model's name.

    Args:
        name: A built-in model, a folder with a model, or an id of the hub.
    """
    if name in BUILTIN_MODELS:
        kind = "builtin"
    else:
        path = Path(name)
        is_place = path.is_absolute() or name.startswith((".", "~")) or path.is_dir()
        kind = "local" if is_place else "huggingface"
    return {"source": {"type": kind, "identifier": name}}


def batch_template(
    url: str,
    task_type: str,
    model: Mapping[str, JsonValue],
    *,
    error_budget: float = 1.0,
    shards: int | None = None,
    labels: Mapping[str, str] | None = None,
    slo_s: float | None = None,
) -> dict[str, JsonValue]:
    """Returns a template whose one task answers a batch.

    Args:
        url: Where the batch is.
        task_type: `inference` or `embedding`.
        model: The template's `model` block.
        error_budget: Which share of the rows may fail.
        shards: Into how many shards the batch is cut at most.
        labels: Labels of the template.
        slo_s: Within how many seconds it should be done.
    """
    embeds = task_type == "embedding"
    spec: dict[str, JsonValue] = {
        "taskType": task_type,
        "model": dict(model),
        "data": {"type": "openai_batch", "url": url},
        "pooling" if embeds else "inference": {"error_budget": error_budget},
        "checks": {"max_empty_fraction": 1},
        "output": {"formats": ["json", "openai_batch"]},
    }
    if shards is not None:
        spec["parallel"] = {"max_shards": shards}
    if slo_s is not None:
        spec["slo"] = {"seconds": slo_s}
    about: dict[str, JsonValue] = {"name": BATCH_NAME}
    if labels:
        about["labels"] = dict(labels)
    return {
        "apiVersion": "mloc/v1",
        "kind": "EmbeddingTask" if embeds else "InferenceTask",
        "metadata": about,
        "spec": spec,
    }
