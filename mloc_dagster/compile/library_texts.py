"""Texts of the library, such as instructions for a model, where a template gives none.

As with presets, they become part of the document: what runs, and what is compared with earlier
runs, has all of it, and a task that is resumed asks as it did before.
"""

from __future__ import annotations

from dataclasses import replace

from mloc_dagster.compile.diagnostics import Findings, at_value, find, put
from mloc_dagster.compile.loader import Document
from mloc_dagster.compile.nodes import STRUCTURE_KEYS, merge
from mloc_dagster.compile.tree import Path, Tree, tree_of
from mloc_dagster.compile.typed import validate
from mloc_dagster.errors import UnknownNameError
from mloc_dagster.library import library_prompt
from mloc_dagster.schema import Block, TaskType, task_types, types_of_kind

_NODES: tuple[Path, ...] = (("stages",), ("graph", "nodes"))


def with_library_texts(document: Document, findings: Findings) -> Document:
    """Returns a document whose tasks have the texts that their task types take from the library.

    A task whose block does not fit its task type stays as it is: what is wrong is found later.

    Args:
        document: As it was written, each task a node of its own.
        findings: Takes the names of texts that the library lacks.

    Raises:
        UnknownNameError: If the library lacks a text that no template names.
    """
    root = document.root
    spec = root.fields.get("spec")
    if spec is None or not spec.fields:
        return document
    kind = root.fields.get("kind")
    place = next((each for each in _NODES if each[0] in spec.fields), None)
    if place is None:
        filled = _filled(spec, None, kind, findings)
    else:
        nodes = find(spec, place)
        if nodes is None:
            return document
        content = [_of_node(each, spec, kind, findings) for each in nodes.items]
        filled = spec
        if any(one is not other for one, other in zip(content, nodes.items, strict=True)):
            filled = put(spec, place, replace(nodes, content=content))  # pyright: ignore[reportArgumentType]
    return document if filled is spec else replace(document, root=put(root, ("spec",), filled))


def _of_node(node: Tree, base: Tree, kind: Tree | None, findings: Findings) -> Tree:
    own = node.fields.get("spec")
    if own is None or not isinstance(own.content, dict):
        return node
    filled = _filled(own, base, kind, findings)
    return node if filled is own else put(node, ("spec",), filled)


def _filled(own: Tree, base: Tree | None, kind: Tree | None, findings: Findings) -> Tree:
    found = _task_type(own, base, kind)
    if found is None or found.text is None:
        return own
    text = found.text
    whole = own if base is None else merge(_without_structure(base), own)
    given = whole.fields.get(text.block) or tree_of({}, own.at, (*own.path, text.block))
    written = given.fields.get(text.key)
    if written is not None and written.content is not None:
        return own
    kind_of_block = found.spec.model_fields[text.block].annotation
    if not isinstance(kind_of_block, type) or not issubclass(kind_of_block, Block):
        raise TypeError(f"{found.spec.__name__}.{text.block} is no block")
    block = validate(kind_of_block, given, Findings())
    if block is None:
        return own
    path = (text.block, text.key)
    try:
        said = library_prompt(text.names(block))
    except UnknownNameError as error:
        named = given.fields.get(text.chosen_by)
        if named is None:
            raise
        findings.add(at_value(named, str(error)))
        return own
    return put(own, path, tree_of(said, own.at, (*own.path, *path)))


def _without_structure(spec: Tree) -> Tree:
    kept = {key: each for key, each in spec.fields.items() if key not in STRUCTURE_KEYS}
    return spec.with_fields(kept)


def _task_type(own: Tree, base: Tree | None, kind: Tree | None) -> TaskType | None:
    given = own.fields.get("taskType") or (None if base is None else base.fields.get("taskType"))
    if given is not None:
        return task_types().get(str(given.content))
    implied = types_of_kind((kind.text if kind is not None else None) or "")
    return implied[0] if len(implied) == 1 else None
