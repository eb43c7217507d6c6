"""`${partition_key}`: the partition that a run computes, in any text of a template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from mloc_dagster.compile.compiled import PARTITION, TOKEN
from mloc_dagster.compile.diagnostics import find
from mloc_dagster.compile.loader import Document
from mloc_dagster.compile.overrides import replace_at, spec_paths
from mloc_dagster.compile.tree import Path, Position, Tree, tree_of
from mloc_dagster.errors import InputError

_PARTITIONS = ("spec", "partitions")


def with_partition(document: Document, key: str) -> Document:
    """Returns a document with a partition in place of `${partition_key}`.

    Where its `partitions` are those of a column, its data sets are cut down to the rows of this
    one. Filling in the same partition again changes nothing.

    Args:
        document: The document, right or not.
        key: The partition.
    """
    root = document.root
    # A partition's key is text, and nothing of it an expression.
    literal = key.replace("${", "$${")
    root = root.replaced(
        {
            path: TOKEN.sub(lambda found: literal if found[0] == PARTITION else found[0], text)
            for path, text in _naming(root)
        }
    )
    column = _column(root)
    for path in () if column is None else _datasets(root):
        place = (*path, "only", column or "")
        root = replace_at(root, place, tree_of(literal, Position("partition"), place))
    return Document(document.name, root, key)


def fill_partition(mapping: Mapping[str, JsonValue], key: str | None) -> dict[str, JsonValue]:
    """Returns a template with the partition of a run; see `with_partition`.

    Args:
        mapping: The template.
        key: The partition; None where a run has none.

    Raises:
        InputError: If the template has partitions or names the run's, and there is none.
    """
    document = Document("template", tree_of(dict(mapping), Position("template")))
    if key is not None:
        return with_partition(document, key).mapping
    if next(_naming(document.root), None) is not None:
        raise InputError(f"the template names {PARTITION}, and this run has no partition")
    if _column(document.root) is not None:
        raise InputError("the template reads the rows of one partition, and this run has none")
    return dict(mapping)


def without_partitions(document: Document) -> Document:
    """Returns a document without `partitions` of its own, for who says which it has."""
    root = document.root
    if find(root, _PARTITIONS) is None:
        return document
    return Document(document.name, replace_at(root, _PARTITIONS, tree_of(None, root.at)))


def _naming(root: Tree) -> Iterator[tuple[Path, str]]:
    """Yields the texts that name the partition."""
    for path, tree in root.strings():
        text = tree.text or ""
        if PARTITION in text and any(each[0] == PARTITION for each in TOKEN.finditer(text)):
            yield path, text


def _column(root: Tree) -> str | None:
    """Returns the column whose values are the partitions; None where they are no column's."""
    kind, column = find(root, (*_PARTITIONS, "type")), find(root, (*_PARTITIONS, "column"))
    return column.text if kind is not None and kind.text == "column" and column else None


def _datasets(root: Tree) -> Iterator[Path]:
    """Yields where the document says which dataset a task reads, or which rows with columns."""
    for path in spec_paths(root):
        data = find(root, (*path, "data"))
        if data is None:
            continue
        kind = data.fields.get("type")
        if (
            kind.text == "dataset"
            if kind is not None
            else {"dataset_name", "rows"} & {*data.fields}
        ):
            yield (*path, "data")
