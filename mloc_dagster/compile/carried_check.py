"""Check of what rows of an earlier task bring along, beside their columns."""

from __future__ import annotations

from collections.abc import Mapping

from mloc_dagster.compile.checks import nearest
from mloc_dagster.compile.diagnostics import Findings, at_value
from mloc_dagster.compile.tree import Tree
from mloc_dagster.schema import RowSpec, TaskSpec, TaskType, UpstreamData, task_types


def check_carried(
    spec: Tree, typed: TaskSpec, ancestors: Mapping[str, TaskType], findings: Findings
) -> None:
    """Adds that rows of an earlier task lack what this one takes from them.

    Args:
        spec: The task's spec as it was written, merged with its base.
        typed: The same, typed.
        ancestors: Task types of the nodes before it, by name.
        findings: Takes the error.
    """
    if not isinstance(typed, RowSpec) or not isinstance(typed.data, UpstreamData):
        return
    source = ancestors.get(typed.data.node)
    lacking = typed.takes - _left_by(source) if source is not None else frozenset[str]()
    if source is None or not lacking:
        return
    what = " and no ".join(sorted(lacking))
    known = sorted(name for name, each in task_types().items() if typed.takes <= _left_by(each))
    message = (
        f"rows of a task of type {source.name!r} have no {what}: those of "
        f"{' and '.join(known)} tasks do"
    )
    findings.add(at_value(nearest(spec, ("data", "node")), message))


def _left_by(given: TaskType) -> frozenset[str]:
    spec = given.spec
    if not issubclass(spec, RowSpec):
        return frozenset()
    return frozenset(spec.leaves if spec.leaves_vectors else (*spec.leaves, "answer"))
