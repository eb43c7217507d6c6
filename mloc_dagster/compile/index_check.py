"""Which indexes a template searches that none of its own tasks builds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mloc_dagster.compile.checks import nearest
from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.schema import Index, TaskSpec, built_in, searched_indexes


def index_places(spec: Tree, typed: TaskSpec) -> dict[Path, Tree]:
    """Returns where the names of the indexes stand that a task searches, by their path."""
    return {path: nearest(spec, path) for path, _ in searched_indexes(typed)}


def indexes_needed(templates: Iterable[CompiledTemplate]) -> Iterator[tuple[Index, Tree]]:
    """Yields every index that has to be there before the templates run, and where it is named.

    What an earlier task of the same template builds will be there.
    """
    for template in templates:
        specs = [each.task.spec for each in template.tasks]
        for each in template.tasks:
            for path, index in searched_indexes(each.task.spec):
                if path in each.named and not built_in(specs, index):
                    yield index, each.named[path]
