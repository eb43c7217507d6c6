"""Where a trainer may send its figures besides the results: `training.report_to`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from mloc_dagster.schema.training import Training

REPORTERS: Mapping[str, str] = MappingProxyType(
    {
        "azure_ml": "azureml",
        "clearml": "clearml",
        "codecarbon": "codecarbon",
        "comet_ml": "comet_ml",
        "dagshub": "dagshub",
        "dvclive": "dvclive",
        "flyte": "flytekit",
        "mlflow": "mlflow",
        "neptune": "neptune",
        "swanlab": "swanlab",
        "tensorboard": "tensorboard",
        "trackio": "trackio",
        "wandb": "wandb",
    }
)
"""The names that transformers 5.19 knows, each with the package that it imports."""

_ALL_OR_NOTHING = frozenset(("all", "none"))


def reporters(training: Training) -> tuple[str, ...]:
    """Returns the names in `report_to`; `all` (whatever is installed) and `none` are no names."""
    given = (training.model_extra or {}).get("report_to")
    names = cast("list[object]", given) if isinstance(given, list) else [given]
    return tuple(str(name) for name in names if name is not None and name not in _ALL_OR_NOTHING)
