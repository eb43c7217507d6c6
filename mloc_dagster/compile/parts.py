"""Templates that stand for several tasks: what their task type calls its parts become nodes.

This happens to the document, so that what runs, and what is compared with earlier runs, is the
same however it was written. Values keep the place where their author wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from mloc_dagster.compile.diagnostics import Findings, at_key, find, normalise, put
from mloc_dagster.compile.loader import Document
from mloc_dagster.compile.nodes import STRUCTURE_KEYS, merge, task_type_of
from mloc_dagster.compile.tree import Tree, tree_of
from mloc_dagster.compile.typed import fields_of, validate
from mloc_dagster.schema import KeyPath, Part, RowSpec, TaskType, find_task_type

_OF_EACH = ("resources", "parallel", "retries", "enforce_cpu", "reuse")
"""Keys of the template's spec that each part takes which has no value of its own for it."""


def with_parts(document: Document, findings: Findings) -> Document:
    """Returns a document whose tasks are those that something computes.

    One that does not fit its task type stays as it is: what is wrong is found there.

    Args:
        document: As it was written.
        findings: Takes what should be written otherwise of the tasks that are replaced.
    """
    root = document.root
    spec = root.fields.get("spec")
    if spec is None or not spec.fields:
        return document
    kind = root.fields.get("kind")
    name = find(root, ("metadata", "name"))
    if "stages" in spec.fields or "graph" in spec.fields:
        cut = _within(spec, kind, findings)
    else:
        cut = _alone(spec, kind, (name and name.text) or "task", findings)
    return document if cut is spec else replace(document, root=put(root, ("spec",), cut))


def _alone(spec: Tree, kind: Tree | None, name: str, findings: Findings) -> Tree:
    found = task_type_of(spec, None, kind)
    if found is None or not found.parts:
        return spec
    nodes = _nodes(found, normalise(spec, findings), name, findings)
    if nodes is None:
        return spec
    rest = {key: spec.fields[key] for key in STRUCTURE_KEYS if key in spec.fields}
    if len(nodes) == 1:
        return spec.with_fields({**rest, **nodes[0].fields["spec"].fields})
    graph = tree_of({"nodes": []}, spec.at, (*spec.path, "graph"))
    graph = put(graph, ("nodes",), replace(graph.fields["nodes"], content=nodes))
    return spec.with_fields({**rest, "graph": graph})


def _within(spec: Tree, kind: Tree | None, findings: Findings) -> Tree:
    place: KeyPath = ("stages",) if "stages" in spec.fields else ("graph", "nodes")
    entries = find(spec, place)
    if entries is None:
        return spec
    items: list[Tree] = []
    types: list[TaskType] = []
    kept_rows = False  # whether another task may want those that stand in the template's own spec
    before: str | None = None
    for entry in entries.items:
        name = entry.fields.get("name")
        nodes = _of_entry(entry, spec, kind, before if place == ("stages",) else None, findings)
        items += [entry] if nodes is None else nodes
        if nodes is None:
            kept_rows |= find(entry, ("spec", "data")) is None
        elif (found := task_type_of(entry.fields["spec"], spec, kind)) is not None:
            types.append(found)
        before = None if name is None else name.text
    if len(items) == len(entries.items) and all(
        one is other for one, other in zip(items, entries.items, strict=True)
    ):
        return spec
    taken = {_path(source) for each in types for part in each.parts for source in _sources(part)}
    kept = {*fields_of(RowSpec), *_OF_EACH} - (set[str]() if kept_rows else {"data"})
    used = {path[0] for path in taken} - kept
    rest = {
        key: _without(each, (key,), taken) if key in kept else each
        for key, each in spec.fields.items()
        if key not in used
    }
    return put(spec.with_fields(rest), place, replace(entries, content=items))


def _of_entry(
    entry: Tree, base: Tree, kind: Tree | None, before: str | None, findings: Findings
) -> list[Tree] | None:
    """Returns the nodes that a stage or node stands for; None if that is itself alone."""
    name, own = entry.fields.get("name"), entry.fields.get("spec")
    if name is None or name.text is None or own is None:
        return None
    found = task_type_of(own, base, kind)
    if found is None or not found.parts:
        return None
    usable = fields_of(found.spec)
    shared = {key: each for key, each in base.fields.items() if key in usable}
    for keys in found.exclusive:
        if not keys.isdisjoint(own.fields):
            shared = {key: each for key, each in shared.items() if key not in keys}
    whole = merge(normalise(base.with_fields(shared), findings), normalise(own, findings))
    waits = entry.fields.get("dependsOn")
    if before is not None and not whole.fields.keys() & {"data", "query"}:
        rows = tree_of({"type": "upstream", "node": before, "text": "{prompt}"}, own.at, own.path)
        whole = whole.with_fields({**whole.fields, "data": rows})
    depends = [each.text or "" for each in waits.items] if waits else []
    if waits is None and before is not None:
        depends = [before]
    nodes = _nodes(found, whole, name.text, findings)
    if nodes is None:
        return None
    if len(nodes) == 1:
        nodes = [put(entry, ("spec",), nodes[0].fields["spec"])]
    return [_waiting(each, depends) for each in nodes]


def _waiting(node: Tree, depends: Sequence[str]) -> Tree:
    own = node.fields.get("dependsOn")
    names = dict.fromkeys([*(each.text or "" for each in own.items), *depends]) if own else depends
    return put(node, ("dependsOn",), tree_of(list(names), node.at, (*node.path, "dependsOn")))


def _nodes(found: TaskType, spec: Tree, name: str, findings: Findings) -> list[Tree] | None:
    """Returns the nodes that a whole spec stands for; None if it does not fit its task type.

    Raises:
        TemplateError: If one of them lacks the part whose rows it takes.
    """
    given = {key: each for key, each in spec.fields.items() if key not in STRUCTURE_KEYS}
    given.setdefault("taskType", tree_of(found.name, spec.at, (*spec.path, "taskType")))
    typed = validate(found.spec, spec.with_fields(given), Findings())
    if typed is None:
        return None
    if "data" not in given:  # the short form of one row
        data = typed.model_dump(mode="json", include={"data"}, exclude_unset=True)["data"]
        given["data"] = tree_of(data, spec.at, (*spec.path, "data"))
    whole = _with_blocks(spec.with_fields(given), found.parts)
    parts = [each for each in found.parts if not each.where or _there(whole, each.where)]
    _check_rows(parts, whole, found, findings)
    names = {each.suffix: f"{name}-{each.suffix}" for each in parts}
    names[parts[-1].suffix] = name
    return [_node(each, whole, names, last=each is parts[-1]) for each in parts]


def _check_rows(parts: Sequence[Part], spec: Tree, found: TaskType, findings: Findings) -> None:
    there = {each.suffix for each in parts}
    for part in parts:
        block = find(spec, _path(part.where)) if part.where else None
        if block is not None and part.rows_of and there.isdisjoint(part.rows_of):
            needed = [each.where for each in found.parts if each.suffix in part.rows_of]
            message = f"{part.where} works on the rows of {' or '.join(needed)}, which is not there"
            findings.add(at_key(block, message))
            findings.raise_errors()  # nothing else is to be said of tasks that there cannot be


def _node(part: Part, spec: Tree, names: Mapping[str, str], *, last: bool) -> Tree:
    block = find_task_type(part.task_type).spec
    usable = fields_of(block)
    named = spec.fields["taskType"]
    own = put(
        tree_of({}, spec.at, spec.path), ("taskType",), replace(named, content=part.task_type)
    )
    taken = {_path(each) for each in _sources(part)}
    for key, sources in part.takes.items():
        for source in (sources,) if isinstance(sources, str) else sources:
            value = find(spec, _path(source))
            if value is not None and value.content is not None:
                own = put(own, _path(key), _without(value, _path(source), taken))
                break
    for key, (there, value) in part.gives.items():
        if _there(spec, there):
            own = put(own, _path(key), tree_of(value, spec.at, (*spec.path, there)))
    blocks = {path[0] for path in taken if len(path) == 1} | {"taskType", "query"}
    for key, value in spec.fields.items():
        everywhere = key in _OF_EACH
        if key in usable and key not in own.fields and (everywhere or (last and key not in blocks)):
            own = put(own, (key,), _without(value, (key,), taken))
    waits: list[JsonValue] = []
    before = next((names[each] for each in part.rows_of if each in names), None)
    if before is not None:
        rows: JsonValue = {"type": "upstream", "node": before, "text": "{prompt}"}
        own = put(own, ("data",), tree_of(rows, spec.at, (*spec.path, "data")))
        waits.append(before)
    if part.after in names:
        waits.append(names[part.after])
    node = tree_of({"name": names[part.suffix], "dependsOn": waits}, spec.at, spec.path)
    return put(node, ("spec",), own)


def _sources(part: Part) -> Iterator[str]:
    for sources in part.takes.values():
        yield from (sources,) if isinstance(sources, str) else sources


def _with_blocks(spec: Tree, parts: Sequence[Part]) -> Tree:
    """Returns a spec in which each model is a block, and none a hub id alone."""
    for source in dict.fromkeys(source for part in parts for source in _sources(part)):
        path = _path(source)
        value = find(spec, path) if path[-1] == "model" else None
        if value is not None and value.text is not None:
            block = replace(value, content={"identifier": value}, raw=None)
            spec = put(spec, path, replace(value, content={"source": block}, raw=None))
    return spec


def _without(value: Tree, at: KeyPath, taken: set[KeyPath]) -> Tree:
    """Returns a block without what goes elsewhere."""
    if not value.fields:
        return value
    return value.with_fields(
        {
            key: _without(each, (*at, key), taken)
            for key, each in value.fields.items()
            if (*at, key) not in taken
        }
    )


def _there(spec: Tree, key: str) -> bool:
    found = find(spec, _path(key))
    return found is not None and found.content is not None


def _path(dotted: str) -> KeyPath:
    return tuple(dotted.split("."))
