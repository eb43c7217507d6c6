"""Stages and graph nodes: names, order, cycles."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mloc_dagster.compile.diagnostics import Findings, at_key, at_value
from mloc_dagster.compile.spelling import find, normalise
from mloc_dagster.compile.tree import Tree
from mloc_dagster.compile.typed import validate
from mloc_dagster.errors import TemplateError, nearest_hint
from mloc_dagster.schema.template import Graph, Node
from mloc_dagster.settings import settings

STRUCTURE_KEYS = ("stages", "graph", "schedule")
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
