"""The template that a batch in OpenAI's format stands for, whatever brought the batch."""

from __future__ import annotations

from collections.abc import Mapping

from mloc_dagster.schema import find_task_type
from mloc_dagster.tasks.asked_model import Fields

BATCH_NAME = "batch"
"""The template's name."""


def batch_template(
    url: str,
    asked: Fields,
    *,
    error_budget: float = 1.0,
    shards: int | None = None,
    labels: Mapping[str, str] | None = None,
    slo_s: float | None = None,
) -> Fields:
    """Returns a template whose one task answers a batch.

    Args:
        url: Where the batch is.
        asked: What answers, as `asked_spec` has it.
        error_budget: Which share of the rows may fail.
        shards: Into how many shards the batch is cut at most.
        labels: Labels of the template.
        slo_s: Within how many seconds it should be done.
    """
    found = find_task_type(str(asked["taskType"]))
    block = found.spec.block_name  # type: ignore[attr-defined]
    given = asked.get(block)
    spec: Fields = {
        **asked,
        "data": {"type": "openai_batch", "url": url},
        block: {**(given if isinstance(given, dict) else {}), "error_budget": error_budget},
        "checks": {"max_empty_fraction": 1},
        "output": {"formats": ["json", "openai_batch"]},
    }
    if shards is not None:
        spec["parallel"] = {"max_shards": shards}
    if slo_s is not None:
        spec["slo"] = {"seconds": slo_s}
    about: Fields = {"name": BATCH_NAME}
    if labels:
        about["labels"] = dict(labels)
    return {"apiVersion": "mloc/v1", "kind": found.kinds[0], "metadata": about, "spec": spec}
