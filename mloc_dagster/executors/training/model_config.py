"""What a training will take, from the config of its model where that lies on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from mloc_dagster.executors.training.memory_estimate import MemoryEstimate, estimate
from mloc_dagster.models import builtin_model_path
from mloc_dagster.schema.task import TrainingSpec

CONFIG_NAME = "config.json"


def estimate_of(spec: TrainingSpec, start_from: Path | None = None) -> MemoryEstimate | None:
    """Returns what a training will take; None where the model's config is not at hand.

    Args:
        spec: The task's spec.
        start_from: Weights that it starts from instead of the model's own.
    """
    source = spec.model.source
    places = [] if start_from is None else [start_from]
    if source.type == "builtin":
        places.append(builtin_model_path(source.identifier))
    elif source.type == "local":
        places.append(Path(source.identifier).expanduser())
    for place in places:
        config = place / CONFIG_NAME
        if config.is_file():  # an adapter has none
            on_gpu = not spec.enforce_cpu and spec.resources.hardware.gpu.count > 0
            device = "cuda" if on_gpu else "cpu"
            return estimate(json.loads(config.read_text()), spec, device=device)
    return None
