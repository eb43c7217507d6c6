"""A template whose rows come from somewhere else than it says: from a file of its caller."""

from __future__ import annotations

from collections.abc import Sequence

from mloc_dagster.compile.diagnostics import Findings, find, normalise
from mloc_dagster.compile.loader import Document
from mloc_dagster.compile.nodes import read_nodes
from mloc_dagster.compile.overrides import replace_at
from mloc_dagster.compile.tree import Path, Position, Tree, tree_of
from mloc_dagster.errors import InputError, MlocError
from mloc_dagster.schema import find_task_type, types_of_kind

_OF_ONE_SOURCE = ("url", "name", "revision", "split")
_OF_ONE_TRAINING_SOURCE = (
    *("dataset_name", "config_name", "revision", "split", "node", "where"),
    *("preferences", "prompts", "rows"),
)


def with_rows(document: Document, file: str, shown: str = "data") -> Document:
    """Returns a document whose first task reads its rows from a file.

    What its `data` says of columns, of prompts made of them and of the order stays, if it reads a
    dataset or does not say what; what says where that is goes.

    Args:
        document: A template of one task, or of several of which one reads no other's result.
        file: The file.
        shown: How the caller calls it, for what is wrong with it.

    Raises:
        InputError: If several tasks read no other's result.
        TemplateError: If its stages or nodes cannot be told apart.
    """
    root = document.root
    at = Position(shown)
    path = _first_task(document)
    base = find(root, ("spec",)) or tree_of({}, at)
    spec = find(root, path) or tree_of({}, at)
    data = spec.fields.get("data") or base.fields.get("data") or tree_of({}, at)
    if _trains(root, spec, base):
        fields = _without(data, _OF_ONE_TRAINING_SOURCE)
        fields["dataset_name"] = tree_of(file, at, (*path, "data", "dataset_name"))
    else:
        kind = data.fields.get("type")
        is_dataset = kind is None or kind.text == "dataset"
        fields = _without(data, _OF_ONE_SOURCE) if is_dataset else {}
        fields["type"] = tree_of("dataset", at, (*path, "data", "type"))
        fields["url"] = tree_of(file, at, (*path, "data", "url"))
    spec = spec.with_fields({**spec.fields, "data": data.with_fields(fields)})
    return Document(document.name, replace_at(root, path, spec))


def _without(data: Tree, names: Sequence[str]) -> dict[str, Tree]:
    return {name: each for name, each in data.fields.items() if name not in names}


def _first_task(document: Document) -> Path:
    """Returns where the spec of the task stands that reads no other's result."""
    root = document.root
    findings = Findings()
    spec = find(root, ("spec",))
    drafts = None if spec is None else read_nodes(normalise(spec, Findings()), findings)
    findings.raise_errors()
    if not drafts:
        return ("spec",)
    first = [each.name for each in drafts if not each.depends_on]
    if len(first) > 1:
        raise InputError(
            f"rows were given, and {' and '.join(map(repr, first))} of {document.name} each read "
            "rows of their own: name files in the template, or with `set`"
        )
    for place in (("spec", "stages"), ("spec", "graph", "nodes")):
        entries = find(root, place)
        for index, each in enumerate(entries.items if entries is not None else ()):
            name = each.fields.get("name")
            if name is not None and name.text == first[0]:
                return (*place, index, "spec")
    raise AssertionError(f"{first[0]!r} was read from this document")


def _trains(root: Tree, spec: Tree, base: Tree) -> bool:
    named = spec.fields.get("taskType") or base.fields.get("taskType")
    try:
        if named is not None:
            return find_task_type(str(named.content)).trains
    except MlocError:
        return False  # the compiler says what is wrong with it
    kind = root.fields.get("kind")
    implied = types_of_kind((kind.text or "") if kind is not None else "")
    return bool(implied) and all(each.trains for each in implied)
