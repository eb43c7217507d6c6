"""Stages and graph nodes: names, order, cycles, and each node's spec over the template's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mloc_dagster.compile.diagnostics import Findings, at_key, at_value, find, normalise
from mloc_dagster.compile.tree import Tree, tree_of
from mloc_dagster.compile.typed import fields_of, validate
from mloc_dagster.errors import TemplateError, nearest_hint
from mloc_dagster.schema import Graph, Node, TaskType, task_types, types_of_kind
from mloc_dagster.settings import settings

STRUCTURE_KEYS = ("stages", "graph", "schedule", "partitions")
"""Keys of the template's spec that no task inherits."""


@dataclass(frozen=True, slots=True)
class NodeDraft:
    """A node before it is merged with the base.

    Attributes:
        name: Its name.
        depends_on: Names as written, or the stage before.
        spec: Its own spec, in today's spelling.
        is_stage: Whether it may take the rows of the stage before.
    """

    name: str
    depends_on: tuple[str, ...]
    spec: Tree
    is_stage: bool


def check_size(root: Tree) -> None:
    """Makes sure that a template has no more tasks than the operator allows.

    What was accepted is compiled again where it runs: there it is not asked how large it may be.

    Raises:
        TemplateError: If it has more; nothing else of it is looked at.
    """
    most = settings().max_stages
    for path in (("spec", "stages"), ("spec", "graph", "nodes")):
        entries = find(root, path)
        if entries is not None and len(entries.items) > most:
            message = (
                f"{len(entries.items):,} tasks in one template; at most {most} (MLOC_MAX_STAGES): "
                "submit them as several templates, or put rows into a data file"
            )
            raise TemplateError([at_key(entries, message)])


def read_nodes(spec: Tree, findings: Findings) -> list[NodeDraft] | None:
    """Returns the stages or graph nodes in topological order; None when the spec has neither."""
    stages, graph = spec.fields.get("stages"), spec.fields.get("graph")
    if stages is not None and graph is not None:
        findings.add(at_key(graph, "give either stages or graph, not both"))
        return []
    if stages is not None:
        drafts = _drafts(stages, findings, is_stage=True)
    elif graph is not None:
        nodes = graph.fields.get("nodes")
        if nodes is None or not nodes.items:
            validate(Graph, graph, findings)
            return []
        for key, child in graph.fields.items():
            if key != "nodes":
                findings.add(at_key(child, f"unknown key {key!r}{nearest_hint(key, ['nodes'])}"))
        drafts = _drafts(nodes, findings, is_stage=False)
    else:
        return None
    return _ordered(drafts, findings)


def ancestors_of(nodes: Sequence[NodeDraft]) -> Mapping[str, frozenset[str]]:
    """Returns for each node every node that ends before it; takes topological order."""
    ancestors: dict[str, frozenset[str]] = {}
    for node in nodes:
        below = [ancestors.get(name, frozenset[str]()) for name in node.depends_on]
        ancestors[node.name] = frozenset(node.depends_on).union(*below)
    return ancestors


def _drafts(entries: Tree, findings: Findings, *, is_stage: bool) -> list[tuple[NodeDraft, Tree]]:
    if not entries.items:
        findings.add(at_value(entries, "expected a list with at least one entry"))
    drafts: list[tuple[NodeDraft, Tree]] = []
    taken: dict[str, str] = {}
    before: str | None = None
    for entry in entries.items:
        node = validate(Node, entry, findings)
        if node is None:
            continue
        place = entry.fields["name"]
        slug = re.sub(r"[^A-Za-z0-9]", "_", node.name)
        if slug in taken:
            clash = "is taken" if taken[slug] == node.name else f"is too like {taken[slug]!r}"
            findings.add(at_value(place, f"the name {node.name!r} {clash}"))
            continue
        taken[slug] = node.name
        depends_on = node.depends_on
        if depends_on is None:
            depends_on = (before,) if is_stage and before is not None else ()
        own = entry.fields.get("spec") or Tree({}, entry.at, entry.key, (*entry.path, "spec"))
        _refuse_structure(own, findings)
        draft = NodeDraft(
            node.name, tuple(dict.fromkeys(depends_on)), normalise(own, findings), is_stage
        )
        drafts.append((draft, entry))
        before = node.name
    return drafts


def _refuse_structure(spec: Tree, findings: Findings) -> None:
    for key in STRUCTURE_KEYS:
        if key in spec.fields:
            message = f"{key!r} stands in the template's own spec only"
            findings.add(at_key(spec.fields[key], message))
    if "dependsOn" in spec.fields:
        message = "'dependsOn' stands beside 'name' and 'spec', not within the spec"
        findings.add(at_key(spec.fields["dependsOn"], message))


def _ordered(drafts: list[tuple[NodeDraft, Tree]], findings: Findings) -> list[NodeDraft]:
    names = [draft.name for draft, _ in drafts]
    for draft, entry in drafts:
        for index, name in enumerate(draft.depends_on):
            if name not in names:
                place = find(entry, ("dependsOn", index)) or entry
                hint = nearest_hint(name, [other for other in names if other != draft.name])
                findings.add(at_value(place, f"no node is called {name!r}{hint}"))
    # What waits for an unknown node is still read, so that its own errors show as well.
    waiting = {
        draft.name: replace(
            draft, depends_on=tuple(name for name in draft.depends_on if name in names)
        )
        for draft, _ in drafts
    }
    ordered: list[NodeDraft] = []
    while waiting:
        ready = next(
            (node for node in waiting.values() if not waiting.keys() & set(node.depends_on)), None
        )
        if ready is None:
            cycle = _cycle(waiting)
            entry = next(entry for draft, entry in drafts if draft.name == cycle[0])
            place = entry.fields.get("dependsOn") or entry
            findings.add(at_key(place, f"these wait for each other: {' → '.join(cycle)}"))
            return []
        ordered.append(waiting.pop(ready.name))
    return ordered


def _cycle(waiting: Mapping[str, NodeDraft]) -> list[str]:
    path = [next(iter(waiting))]
    while True:
        following = next(name for name in waiting[path[-1]].depends_on if name in waiting)
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


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
    evaluation = fields.get("evaluation")
    if evaluation is not None and ("data" in evaluation.fields) == task_type.has_rows:
        del fields["evaluation"]  # a training is evaluated on data, rows are on their own answers
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


def task_type_of(spec: Tree, base: Tree | None, kind: Tree | None) -> TaskType | None:
    """Returns the task type of a spec; None where there is no such, or nothing says which.

    Args:
        spec: The task's own spec.
        base: The template's, of a stage or node.
        kind: The template's `kind`, which may imply one.
    """
    given = spec.fields.get("taskType") or (None if base is None else base.fields.get("taskType"))
    if given is not None:
        return task_types().get(str(given.content))
    implied = types_of_kind((kind.text if kind is not None else None) or "")
    return implied[0] if len(implied) == 1 else None
