"""How an op says that its steps belong on the fleet: tags, read by the executor."""

from __future__ import annotations

from collections.abc import Mapping

from mloc_dagster.fleet.hardware import Requirements
from mloc_dagster.schema.resources import Retries

REQUIREMENTS_TAG = "mloc/requirements"
"""JSON of `Requirements`; an op without it runs inside the run worker."""

MODEL_TAG = "mloc/model_key"
"""The model that the op's steps need."""


RETRIES_TAG = "mloc/retries"
"""JSON of `Retries`, for attempts whose worker could not tell Dagster how they ended.

Not Dagster's retry policy: where an op has one, Dagster retries a step that Ctrl-C interrupted.
"""


def fleet_tags(
    requirements: Requirements, model_key: str | None, retries: Retries | None = None
) -> dict[str, str]:
    """Returns the tags that send an op's steps to workers."""
    tags = {REQUIREMENTS_TAG: requirements.model_dump_json()}
    if retries is not None:
        tags[RETRIES_TAG] = retries.model_dump_json()
    return tags if model_key is None else {**tags, MODEL_TAG: model_key}


def tags_of_step(step: Mapping[str, str] | None, run: Mapping[str, str]) -> Mapping[str, str]:
    """Returns what holds for a step: its op's tags, or those of its run where it has the same.

    An op that belongs on the fleet and serves runs of many kinds cannot know what each needs.
    """
    own = step or {}
    if REQUIREMENTS_TAG not in own:
        return own
    known = (REQUIREMENTS_TAG, MODEL_TAG, RETRIES_TAG)
    return {**own, **{name: run[name] for name in known if name in run}}


def requirements_of_step(tags: Mapping[str, str]) -> Requirements | None:
    """Returns what a step needs of its worker; None for a step of the run itself."""
    text = tags.get(REQUIREMENTS_TAG)
    return None if text is None else Requirements.model_validate_json(text)


def retries_of_step(tags: Mapping[str, str]) -> Retries | None:
    """Returns how often a step is tried again; None where its op says nothing."""
    text = tags.get(RETRIES_TAG)
    return None if text is None else Retries.model_validate_json(text)
