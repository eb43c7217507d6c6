"""What small tasks must have in common to share a run."""

from __future__ import annotations

import hashlib

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.data import ListData
from mloc_dagster.schema.output import HttpDestination
from mloc_dagster.schema.task import RowSpec

MOST_ROWS = 64
"""Rows of a task that counts as small."""

_OWN = {"data", "output", "slo", "retries", "parallel"}
"""What each task of a batch may have differently: it is seen to task by task."""


def batch_key(compiled: CompiledTemplate) -> str | None:
    """Returns what a template's task must share with others to be computed with them.

    That is its whole spec but for its rows and what becomes of them. A task is left alone if its
    rows would be answered otherwise among others (a seed counts from its own first row), if others
    would wait for its delivery, if it is large, or if it is one of several.

    Returns:
        A key; None if the task wants a run of its own.
    """
    if len(compiled.tasks) != 1 or compiled.schedule is not None:
        return None
    spec = compiled.tasks[0].task.spec
    if not isinstance(spec, RowSpec) or not _is_small(spec) or not _is_indifferent(spec):
        return None
    shared = spec.model_dump(mode="json", by_alias=True, exclude=_OWN)
    text = canonical_json([spec.task_type, shared])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _is_small(spec: RowSpec) -> bool:
    data = spec.data
    waits = isinstance(spec.output.destination, HttpDestination)
    if waits or spec.resources.pool is not None:  # a batch's shards are in no pool
        return False
    return isinstance(data, ListData) and len(data.items) <= MOST_ROWS


def _is_indifferent(spec: RowSpec) -> bool:
    """Tells whether it makes no difference to a row which place among others it has."""
    if isinstance(spec.data, ListData) and spec.data.shuffle:
        return False
    return spec.rows_are_alike
