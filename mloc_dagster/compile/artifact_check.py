"""Does a task make the artifacts that its template wants kept and delivered?"""

from __future__ import annotations

from mloc_dagster.compile.diagnostics import at_value
from mloc_dagster.compile.effects import Effects
from mloc_dagster.compile.spelling import find
from mloc_dagster.compile.tree import Tree
from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.output import (
    BATCH_ERRORS_NAME,
    BATCH_OUTPUT_NAME,
    CHECKPOINTS_NAME,
    FINAL_LORA,
    FINAL_MODEL,
    artifact_name,
)
from mloc_dagster.schema.task import TaskSpec, TrainingSpec

_EVERY_TASK = frozenset(
    {"task.json", "plan.json", "responses.json", "manifest.json", "input", "shards", "logs"}
)


def check_artifacts(spec: Tree, typed: TaskSpec, effects: Effects) -> None:
    """Notes which artifacts a task will make, and which not.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        effects: Takes both.
    """
    listed = find(spec, ("output", "artifacts"))
    if listed is None:
        return
    trains = isinstance(typed, TrainingSpec)
    made = _of_training(typed) if trains else _of_rows(typed)
    for item, name in zip(listed.items, typed.output.artifacts, strict=True):
        meant = artifact_name(name, _final(typed)) if trains else name.rstrip("/")
        if meant.split("/")[0] in made:
            effects.read(item)
        else:
            message = f"no task of this template makes {name!r}{nearest_hint(name, made)}"
            effects.idle(item, at_value(item, message, "warning"))


def _of_rows(typed: TaskSpec) -> frozenset[str]:
    formats = set(typed.output.formats)
    batch = {BATCH_OUTPUT_NAME, BATCH_ERRORS_NAME} if "openai_batch" in formats else set[str]()
    files = {f"responses.{each}" for each in formats - {"openai_batch"}}
    return _EVERY_TASK | files | batch | {"summary.json"}


def _of_training(typed: TrainingSpec) -> frozenset[str]:
    made = _EVERY_TASK | {"training.json"}
    if typed.training.save_strategy != "no":
        made |= {CHECKPOINTS_NAME}
    if typed.training.save_model:
        made |= {_final(typed), "archives"}
    return made | {"evaluation-before.json"} if typed.evaluation is not None else made


def _final(typed: TaskSpec) -> str:
    adapts = isinstance(typed, TrainingSpec) and typed.lora is not None
    return FINAL_LORA if adapts else FINAL_MODEL
