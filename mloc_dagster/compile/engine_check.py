"""Can the engine of a task do what the task asks of it?"""

from __future__ import annotations

from mloc_dagster.compile.diagnostics import Findings, at_key, at_value
from mloc_dagster.compile.spelling import find
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.schema.engines import refusals
from mloc_dagster.schema.task import InferenceSpec, ModelSpec, TaskSpec

FORM_MAY_BREAK = (
    "an answer that a stop string ends may lack the rest of its form: structured_outputs alone "
    "ends each answer where its form is complete"
)

NO_ADAPTERS = "a task of type 'embedding' has none: adapters answer with text"


def check_engine(spec: Tree, typed: TaskSpec, findings: Findings) -> None:
    """Adds what no engine, or not the one the template names, can do.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        findings: Takes errors, and a warning about forms that may break.
    """
    if not isinstance(typed, ModelSpec):
        return
    for each in refusals(typed):
        place = nearest(spec, each.path)
        findings.add((at_key if each.at_key else at_value)(place, each.reason))
    if isinstance(typed, InferenceSpec):
        if typed.inference.structured_outputs is not None and typed.inference.stop:
            place = nearest(spec, ("inference", "stop"))
            findings.add(at_value(place, FORM_MAY_BREAK, "warning"))
    elif typed.leaves_vectors and typed.model.adapters:
        findings.add(at_value(nearest(spec, ("model", "adapters")), NO_ADAPTERS))


def nearest(tree: Tree, path: Path) -> Tree:
    """Returns the value at a path below, or the innermost that is there on the way."""
    for length in range(len(path), 0, -1):
        found = find(tree, path[:length])
        if found is not None:
            return found
    return tree
