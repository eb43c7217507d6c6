"""Experiment trackers that a task's figures are sent to."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, JsonValue

from mloc_dagster.schema.markers import LibraryOptions, Path

Tracker = Literal["mlflow", "tensorboard", "wandb"]

_NOWHERE = "none"


def _listed(value: object) -> object:
    """Returns a name as a list of one; `none` is no name, as in `training.report_to`."""
    given = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    return [each for each in given if each is not None and each != _NOWHERE]


def _allows(path: Path, value: JsonValue) -> bool:
    return value in (None, _NOWHERE)


ReportTo = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(
        _listed,
        json_schema_input_type=Tracker | Literal["none"] | list[Tracker | Literal["none"]] | None,
    ),
    LibraryOptions(_allows, itself=True),
]
"""Which of them; the worker's environment names servers and holds keys."""
