"""A node's spec over the template's: which keys it inherits, and how values combine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mloc_dagster.compile.annotations import fields_of
from mloc_dagster.compile.diagnostics import Findings, at_key
from mloc_dagster.compile.nodes import STRUCTURE_KEYS, NodeDraft
from mloc_dagster.compile.tree import Tree, tree_of
from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.task_type import TaskType, task_types

_TYPED_BLOCKS = frozenset({"data", "source", "destination", "load", "reward_model"})
"""Blocks whose `type` decides what their other keys mean (a GPU's `type` does not)."""


def merge(base: Tree, over: Tree) -> Tree:
    """Returns `over` laid on `base`: mappings recursively, everything else replaces."""
    if not isinstance(base.content, dict) or not isinstance(over.content, dict):
        return over
    if over.path and over.path[-1] in _TYPED_BLOCKS and _retyped(base, over):
        return over
    fields = dict(base.fields)
    for key, value in over.fields.items():
        fields[key] = merge(fields[key], value) if key in fields else value
    return over.with_fields(fields)


def merged_spec(
    base: Tree, node: NodeDraft, task_type: TaskType, before: Mapping[str, TaskType]
) -> Tree:
    """Returns the whole spec of a node.

    Args:
        base: The template's spec.
        node: The node.
        task_type: The node's task type.
        before: The task types of all nodes, by name.
    """
    own = node.spec
    rows_from = _stage_rows(node, task_type, before)
    if rows_from is not None:
        data = tree_of({"type": "upstream", "node": rows_from}, own.at, (*own.path, "data"))
        own = own.with_fields({**own.fields, "data": data})
    spec = merge(_inherited(base, own, task_type, replaces_data=rows_from is not None), own)
    named = spec.fields.get("taskType") or tree_of(task_type.name, own.at, (*own.path, "taskType"))
    return spec.with_fields({**spec.fields, "taskType": named})


def check_base_keys(base: Tree, used: Iterable[TaskType], findings: Findings) -> None:
    """Adds an error for each key of the template's spec that none of its tasks can use."""
    types = {each.name: each for each in used}
    usable = {key for each in types.values() for key in fields_of(each.spec)}
    known = {key for each in task_types().values() for key in fields_of(each.spec)}
    for key, child in base.fields.items():
        if key in usable or key in STRUCTURE_KEYS:
            continue
        if key in known:
            message = f"no task of this template uses {key!r} (they are {', '.join(sorted(types))})"
        else:
            message = f"unknown key {key!r}{nearest_hint(key, usable | set(STRUCTURE_KEYS))}"
        findings.add(at_key(child, message))


def _stage_rows(node: NodeDraft, task_type: TaskType, types: Mapping[str, TaskType]) -> str | None:
    if not node.is_stage or "data" in node.spec.fields or not task_type.takes_rows_of_a_stage:
        return None
    if len(node.depends_on) != 1:
        return None
    before = node.depends_on[0]
    return before if before in types and types[before].has_rows else None


def _inherited(base: Tree, own: Tree, task_type: TaskType, *, replaces_data: bool) -> Tree:
    usable = fields_of(task_type.spec)
    replaced = {
        key
        for keys in task_type.exclusive
        if not keys.isdisjoint(own.fields)
        for key in keys - own.fields.keys()
    }
    fields = {
        key: child for key, child in base.fields.items() if key in usable and key not in replaced
    }
    data = fields.get("data")
    if data is not None and (replaces_data or not _suits(data, own.fields.get("data"), task_type)):
        del fields["data"]
    return base.with_fields(fields)


def _suits(data: Tree, own: Tree | None, task_type: TaskType) -> bool:
    """Rows to train on have no `type`; rows to work on have one."""
    if "type" in data.fields:
        return task_type.has_rows
    return not task_type.has_rows or own is None or "type" not in own.fields


def _retyped(base: Tree, over: Tree) -> bool:
    return (
        "type" in base.fields
        and "type" in over.fields
        and base.fields["type"].content != over.fields["type"].content
    )
