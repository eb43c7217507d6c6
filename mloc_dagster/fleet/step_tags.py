"""How an op says that its steps belong on the fleet: two tags, read by the executor."""

from __future__ import annotations

from collections.abc import Mapping

from mloc_dagster.fleet.hardware import Requirements

REQUIREMENTS_TAG = "mloc/requirements"
"""JSON of `Requirements`; an op without it runs inside the run worker."""

MODEL_TAG = "mloc/model_key"
"""The model that the op's steps need."""


def fleet_tags(requirements: Requirements, model_key: str | None) -> dict[str, str]:
    """Returns the tags that send an op's steps to workers."""
    tags = {REQUIREMENTS_TAG: requirements.model_dump_json()}
    return tags if model_key is None else {**tags, MODEL_TAG: model_key}


def requirements_of_step(tags: Mapping[str, str]) -> Requirements | None:
    """Returns what a step needs of its worker; None for a step of the run itself."""
    text = tags.get(REQUIREMENTS_TAG)
    return None if text is None else Requirements.model_validate_json(text)
