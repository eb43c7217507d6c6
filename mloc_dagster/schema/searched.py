"""Which indexes a task searches, whichever task type it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mloc_dagster.schema.agent_tools import tools_in
from mloc_dagster.schema.index import Index
from mloc_dagster.schema.markers import Path
from mloc_dagster.schema.retrieval import IndexSpec, RetrieveSpec
from mloc_dagster.schema.task import TaskSpec


def searched_indexes(spec: TaskSpec) -> Iterator[tuple[Path, Index]]:
    """Yields every index that a task searches, with the place of its name in the spec."""
    if isinstance(spec, RetrieveSpec):
        yield ("index", "name"), spec.index
    for path, tool in tools_in(spec):
        if tool.rag is not None:
            yield (*path, "rag", "index"), tool.rag.place


def built_in(specs: Sequence[TaskSpec], index: Index) -> bool:
    """Tells whether one of several tasks builds an index."""
    return any(isinstance(each, IndexSpec) and each.index.is_same(index) for each in specs)
