"""A template document: what stands around the specs, and which of its values are marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field, JsonValue

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.markers import Marked, Path, marked
from mloc_dagster.schema.task import Metadata, TaskSpec
from mloc_dagster.schema.task_type import task_types, types_of_kind

API_VERSION = "mloc/v1"


class Node(Block):
    """A stage, or a node of a graph."""

    name: Name
    """How others refer to it."""

    depends_on: tuple[str, ...] | None = Field(default=None, alias="dependsOn")
    """Names of the nodes that must end first; for a stage, by default the one before it."""

    spec: Mapping[str, JsonValue] = Field(default_factory=dict)
    """What differs from the template's spec, over which it is merged."""


class Graph(Block):
    """Nodes in any order; `dependsOn` says which waits for which."""

    nodes: tuple[Node, ...] = Field(min_length=1)


class Template(Block):
    """One YAML document."""

    api_version: Literal["mloc/v1"] = Field(alias="apiVersion")
    """Always `mloc/v1`."""

    kind: str
    """What the template is, for readers; gives `taskType` where the spec does not."""

    metadata: Metadata
    spec: Mapping[str, JsonValue]
    """One task's spec, or the base of all stages or nodes."""


def marked_values(document: Mapping[str, JsonValue]) -> Iterator[tuple[Path, Marked]]:
    """Yields every value of a template that its task types mark.

    Args:
        document: As it is written, right or not, before anything is merged.

    Yields:
        The place in the document of the spec that holds the value, and the value.
    """
    base = document.get("spec")
    if not isinstance(base, dict):
        return
    nodes = dict(_node_specs(base))
    blocks = {path: _blocks(spec, base, document) for path, spec in nodes.items()}
    own = dict.fromkeys(each for found in blocks.values() for each in found)
    blocks[("spec",)] = tuple(own) or _blocks(base, base, document)
    for path, spec in {("spec",): base, **nodes}.items():
        for each in dict.fromkeys(each for block in blocks[path] for each in marked(block, spec)):
            yield path, each


def marked_in_spec(spec: JsonValue) -> Iterator[Marked]:
    """Yields every value of a task's whole spec that its task type marks."""
    if isinstance(spec, dict):
        found = (each for block in _blocks(spec, spec, {}) for each in marked(block, spec))
        yield from dict.fromkeys(found)


def _node_specs(base: Mapping[str, JsonValue]) -> Iterator[tuple[Path, dict[str, JsonValue]]]:
    graph = base.get("graph")
    lists: dict[Path, JsonValue] = {("spec", "stages"): base.get("stages")}
    if isinstance(graph, dict):
        lists["spec", "graph", "nodes"] = graph.get("nodes")
    for path, nodes in lists.items():
        for number, node in enumerate(nodes if isinstance(nodes, list) else ()):
            spec = node.get("spec") if isinstance(node, dict) else None
            if isinstance(spec, dict):
                yield (*path, number, "spec"), spec


def _blocks(
    spec: Mapping[str, JsonValue], base: Mapping[str, JsonValue], document: Mapping[str, JsonValue]
) -> tuple[type[TaskSpec], ...]:
    """Returns what a spec may be: of one task type where it is named, else of any."""
    name, kind = spec.get("taskType", base.get("taskType")), document.get("kind")
    known = task_types()
    if isinstance(name, str) and name in known:
        return (known[name].spec,)
    implied = types_of_kind(kind) if isinstance(kind, str) else ()
    return tuple(each.spec for each in implied or known.values())
