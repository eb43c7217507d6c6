"""Walking types along a path: which blocks, keys and values a template may have where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args, get_origin

from pydantic import BaseModel

from mloc_dagster.compile.tree import Path
from mloc_dagster.schema.base import Annotation, Block, alternatives, tags_of


def fields_of(block: type[BaseModel]) -> dict[str, Annotation]:
    """Returns the type of each key that a block takes, by the key's name in YAML."""
    fields = dict(block.model_fields)
    if issubclass(block, Block):
        fields |= block.registered_fields()
    return {field.alias or name: field.annotation for name, field in fields.items()}


def step_into(annotation: Annotation, step: str | int) -> list[Annotation]:
    """Returns what may stand one step below a type; empty when nothing may."""
    found: list[Annotation] = []
    for member in alternatives(annotation):
        origin, args = get_origin(member), get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            if step in (fields := fields_of(member)):
                found.append(fields[str(step)])
        elif origin in (tuple, list, Sequence) and isinstance(step, int):
            found.append(args[0])
        elif origin in (dict, Mapping) and isinstance(step, str):
            found.append(args[1])
    return found


def blocks_at(block: type[Block], loc: Path) -> list[type[Block]]:
    """Returns the blocks that may stand at a pydantic location, union tags included."""
    current: list[Annotation] = [block]
    for step in loc:
        found = [below for annotation in current for below in step_into(annotation, step)]
        if not found:
            tagged = [member for member in _blocks(current) if step in tags_of(member)]
            found = list[Annotation](tagged)
        # A step that is neither key nor tag is pydantic's label of a union member.
        current = found or current
    return _blocks(current)


def _blocks(annotations: list[Annotation]) -> list[type[Block]]:
    return [
        member
        for annotation in annotations
        for member in alternatives(annotation)
        if isinstance(member, type) and issubclass(member, Block)
    ]
