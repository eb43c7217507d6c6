"""What an engine of indexes is: one descriptor, found by entry point.

A distribution registers its descriptor under the group `mloc_dagster.index_engines`, with the
engine's name; mloc's own come in the same way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mloc_dagster.plugins import INDEX_ENGINES_GROUP, Registry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IndexEngineType:
    """An engine of indexes.

    Attributes:
        name: What `index.engine` says; also the name of its entry point.
        label: What messages call it: `LanceDB`.
        opener: What opens an index there, an `IndexOpener`, as `package.module:Class`. It is
            imported where an index is used, never where a template is compiled.
        metrics: What it can measure nearness by, of `cosine`, `dot` and `l2`.
        local: Whether it needs no server that a template has to name.
    """

    name: str
    label: str
    opener: str
    metrics: frozenset[str] = frozenset({"cosine", "dot", "l2"})
    local: bool = True


def index_engine_types() -> Mapping[str, IndexEngineType]:
    """Returns every engine of indexes that can be used, by name."""
    return _REGISTRY.known()


def find_index_engine(name: str) -> IndexEngineType:
    """Returns the engine of a name.

    Raises:
        UnknownNameError: If nobody registered that name.
        TerminalError: If two distributions did, or the one that did cannot be loaded.
    """
    return _REGISTRY.find(name)


def _order(engine: IndexEngineType) -> tuple[bool, str]:
    return not engine.local, engine.name


def _refuse(given: IndexEngineType, others: Collection[IndexEngineType]) -> str | None:
    return None if given.metrics else "has no metric"


_REGISTRY = Registry(INDEX_ENGINES_GROUP, "index engine", IndexEngineType, _refuse, _order)
