"""Presets: templates of the library that a task's spec is laid over.

A task type may have a key that names one (`TaskType.preset`). The preset becomes part of the
document, so that what runs, and what is compared with earlier runs, has all of it.
"""

from __future__ import annotations

from dataclasses import replace

from mloc_dagster.compile.diagnostics import Findings, at_value, find
from mloc_dagster.compile.loader import Document, load_documents
from mloc_dagster.compile.nodes import merge, task_type_of
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.errors import TemplateError, nearest_hint
from mloc_dagster.library import library_files


def with_presets(document: Document, findings: Findings) -> Document:
    """Returns a document whose specs are laid over the presets that they name.

    Args:
        document: As it was written.
        findings: Takes names that mean no preset.
    """
    root = document.root
    spec = root.fields.get("spec")
    if spec is None or not spec.fields:
        return document
    kind = root.fields.get("kind")
    laid = _laid(spec, kind, None, findings)
    for place in (("stages",), ("graph", "nodes")):
        laid = _each(laid, place, kind, findings)
    if laid is spec:
        return document
    return replace(document, root=root.with_fields({**root.fields, "spec": laid}))


def _each(spec: Tree, place: Path, kind: Tree | None, findings: Findings) -> Tree:
    nodes = find(spec, place)
    if nodes is None or not nodes.items:
        return spec
    changed = [_node(each, spec, kind, findings) for each in nodes.items]
    if all(one is other for one, other in zip(changed, nodes.items, strict=True)):
        return spec
    found = replace(nodes, content=changed)
    if len(place) == 1:
        return spec.with_fields({**spec.fields, "stages": found})
    graph = spec.fields["graph"]
    return spec.with_fields(
        {**spec.fields, "graph": graph.with_fields({**graph.fields, "nodes": found})}
    )


def _node(node: Tree, base: Tree, kind: Tree | None, findings: Findings) -> Tree:
    own = node.fields.get("spec")
    if own is None or not own.fields:
        return node
    laid = _laid(own, kind, base, findings)
    return node if laid is own else node.with_fields({**node.fields, "spec": laid})


def _laid(spec: Tree, kind: Tree | None, base: Tree | None, findings: Findings) -> Tree:
    """Returns a spec over its preset; the spec itself where its task type has none."""
    descriptor = task_type_of(spec, base, kind)
    if descriptor is None or descriptor.preset is None:
        return spec
    key, folder = descriptor.preset
    if base is None and not _is_task(spec):
        return spec
    given = spec.fields.get(key) or (None if base is None else base.fields.get(key))
    name = "default" if given is None else str(given.content)
    files = {
        each.removeprefix(f"{folder}/"): path
        for each, path in library_files().items()
        if each.startswith(f"{folder}/")
    }
    path = files.get(name) or files.get(name.rpartition("/")[2])
    if path is None:
        if given is not None:
            message = f"unknown {key} {name!r}{nearest_hint(name, files)}: it names a template in "
            findings.add(at_value(given, f"{message}{folder}/ of the library"))
        return spec
    try:
        preset = load_documents(path)[0].root.fields["spec"]
    except (TemplateError, KeyError) as error:
        findings.add(at_value(given or spec, f"the preset {path} cannot be read: {error}"))
        return spec
    # What the spec says itself replaces a block as a whole where it would mix two of them.
    own = {*spec.fields, *(() if base is None else base.fields)}
    left_out = {"taskType", key, *descriptor.whole_keys & own}
    for keys in descriptor.exclusive:
        left_out |= keys
    fields = {name: each for name, each in preset.fields.items() if name not in left_out}
    return merge(preset.with_fields(fields), spec)


def _is_task(spec: Tree) -> bool:
    return not any(each in spec.fields for each in ("stages", "graph"))
