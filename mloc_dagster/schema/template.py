"""A template document: what stands around the specs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, JsonValue

from mloc_dagster.schema.base import Block, Name
from mloc_dagster.schema.task import Metadata

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
