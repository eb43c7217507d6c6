"""Can the engine of a task do what the task asks of it?"""

from __future__ import annotations

from itertools import chain

from mloc_dagster.compile.diagnostics import Findings, at_value
from mloc_dagster.compile.spelling import find
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.compile.vllm_check import check_vllm_arguments, refused_parallelism
from mloc_dagster.schema.engines import (
    certain_engine,
    refused_in_inference,
    refused_in_model,
)
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
    check_vllm_arguments(spec, findings)
    engine = certain_engine(typed.model, enforce_cpu=typed.enforce_cpu)
    logprobs: int | None = None
    if isinstance(typed, InferenceSpec):
        block = typed.inference
        logprobs = block.logprobs
        for path, reason in refused_in_inference(block, engine):
            findings.add(at_value(nearest(spec, ("inference", *path)), reason))
        if block.structured_outputs is not None and block.stop:
            place = nearest(spec, ("inference", "stop"))
            findings.add(at_value(place, FORM_MAY_BREAK, "warning"))
    elif typed.model.adapters:
        findings.add(at_value(nearest(spec, ("model", "adapters")), NO_ADAPTERS))
    refused = refused_in_model(typed.model, engine, logprobs=logprobs)
    if engine != "transformers":
        refused = chain(refused, refused_parallelism(typed))
    for path, reason in refused:
        findings.add(at_value(nearest(spec, ("model", *path)), reason))


def nearest(tree: Tree, path: Path) -> Tree:
    """Returns the value at a path below, or the innermost that is there on the way."""
    for length in range(len(path), 0, -1):
        found = find(tree, path[:length])
        if found is not None:
            return found
    return tree
