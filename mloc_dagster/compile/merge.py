"""A node's spec over the template's: which keys it inherits, and how values combine."""

from __future__ import annotations

from collections.abc import Iterable

from mloc_dagster.compile.annotations import fields_of
from mloc_dagster.compile.diagnostics import Findings, at_key
from mloc_dagster.compile.nodes import STRUCTURE_KEYS, NodeDraft
from mloc_dagster.compile.tree import Tree, tree_of
from mloc_dagster.errors import nearest_hint
from mloc_dagster.schema.result import ROW_TASK_TYPES
from mloc_dagster.schema.task import SPEC_TYPES

_TYPED_BLOCKS = frozenset({"data", "source", "destination", "load", "reward_model"})
"""Blocks whose `type` decides what their other keys mean (a GPU's `type` does not)."""

_TAKES_STAGE_ROWS = frozenset({"echo", "inference", "embedding", "rag"})


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


def merged_spec(base: Tree, node: NodeDraft, task_type: str, task_types: dict[str, str]) -> Tree:
    """Returns the whole spec of a node.

    Args:
        base: The template's spec.
        node: The node.
        task_type: The node's task type.
        task_types: The task types of all nodes before it, by name.
    """
    own = node.spec
    rows_from = _stage_rows(node, task_type, task_types)
    if rows_from is not None:
        data = tree_of({"type": "upstream", "node": rows_from}, own.at, (*own.path, "data"))
        own = own.with_fields({**own.fields, "data": data})
    spec = merge(_inherited(base, own, task_type, replaces_data=rows_from is not None), own)
    named = spec.fields.get("taskType") or tree_of(task_type, own.at, (*own.path, "taskType"))
    return spec.with_fields({**spec.fields, "taskType": named})


def check_base_keys(base: Tree, task_types: Iterable[str], findings: Findings) -> None:
    """Adds an error for each key of the template's spec that none of its tasks can use."""
    types = sorted(set(task_types))
    usable = {key for name in types for key in fields_of(SPEC_TYPES[name])}
    known = {key for block in SPEC_TYPES.values() for key in fields_of(block)}
    for key, child in base.fields.items():
        if key in usable or key in STRUCTURE_KEYS:
            continue
        if key in known:
            message = f"no task of this template uses {key!r} (they are {', '.join(types)})"
        else:
            message = f"unknown key {key!r}{nearest_hint(key, usable | set(STRUCTURE_KEYS))}"
        findings.add(at_key(child, message))


def _stage_rows(node: NodeDraft, task_type: str, task_types: dict[str, str]) -> str | None:
    if not node.is_stage or "data" in node.spec.fields or task_type not in _TAKES_STAGE_ROWS:
        return None
    if len(node.depends_on) != 1:
        return None
    before = node.depends_on[0]
    return before if task_types.get(before) in ROW_TASK_TYPES else None


def _inherited(base: Tree, own: Tree, task_type: str, *, replaces_data: bool) -> Tree:
    usable = fields_of(SPEC_TYPES[task_type])
    fields = {key: child for key, child in base.fields.items() if key in usable}
    data = fields.get("data")
    drop = replaces_data or (task_type == "agent" and "task" in own.fields)
    if data is not None and (drop or not _suits(data, own.fields.get("data"), task_type)):
        del fields["data"]
    if task_type == "agent" and "data" in own.fields:
        fields.pop("task", None)
    return base.with_fields(fields)


def _suits(data: Tree, own: Tree | None, task_type: str) -> bool:
    """Rows to train on have no `type`; rows to work on have one."""
    if "type" in data.fields:
        return task_type in ROW_TASK_TYPES
    return task_type not in ROW_TASK_TYPES or own is None or "type" not in own.fields


def _retyped(base: Tree, over: Tree) -> bool:
    return (
        "type" in base.fields
        and "type" in over.fields
        and base.fields["type"].content != over.fields["type"].content
    )
