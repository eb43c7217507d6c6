"""A template as a tree that remembers where in which file each value stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import JsonValue

Path = tuple[str | int, ...]
Scalar = str | int | float | bool | None

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Position(NamedTuple):
    """A place in a file, counted from 1; line 0 when there is none."""

    file: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """A value of a template.

    Attributes:
        content: The value: a scalar, or more trees.
        at: Where the value stands.
        key: Where its key stands; for items of a list and for roots the same as `at`.
        path: Its path in the document as written, before any merge.
        raw: A scalar's spelling in the file, where there is one.
    """

    content: Scalar | dict[str, Tree] | list[Tree]
    at: Position
    key: Position
    path: Path = ()
    raw: str | None = None

    @property
    def fields(self) -> dict[str, Tree]:
        """The content of a mapping; empty for anything else."""
        return self.content if isinstance(self.content, dict) else {}

    @property
    def items(self) -> list[Tree]:
        """The content of a list; empty for anything else."""
        return self.content if isinstance(self.content, list) else []

    @property
    def text(self) -> str | None:
        """The content of a string; None for anything else."""
        return self.content if isinstance(self.content, str) else None

    def with_fields(self, fields: dict[str, Tree]) -> Tree:
        """Returns the same mapping with other content."""
        return replace(self, content=fields)

    def plain(self) -> JsonValue:
        """Returns the value without positions."""
        if isinstance(self.content, dict):
            return {key: child.plain() for key, child in self.content.items()}
        if isinstance(self.content, list):
            return [child.plain() for child in self.content]
        return self.content

    def mapping(self) -> dict[str, JsonValue]:
        """Returns the content of a mapping without positions; empty for anything else."""
        return {key: child.plain() for key, child in self.fields.items()}

    def replaced(self, contents: Mapping[Path, Scalar]) -> Tree:
        """Returns the tree with other scalars at some places below it."""
        if not contents:
            return self
        if () in contents:
            return replace(self, content=contents[()])
        below: dict[str | int, dict[Path, Scalar]] = {}
        for (step, *rest), content in contents.items():
            below.setdefault(step, {})[tuple(rest)] = content
        if isinstance(self.content, dict):
            fields = self.content.items()
            return self.with_fields(
                {key: each.replaced(below.get(key, {})) for key, each in fields}
            )
        items = enumerate(self.items)
        return replace(self, content=[each.replaced(below.get(n, {})) for n, each in items])

    def strings(self, below: Path = ()) -> Iterator[tuple[Path, Tree]]:
        """Yields every string below, with its path relative to this tree."""
        if isinstance(self.content, dict):
            for key, child in self.content.items():
                yield from child.strings((*below, key))
        elif isinstance(self.content, list):
            for index, child in enumerate(self.content):
                yield from child.strings((*below, index))
        elif isinstance(self.content, str):
            yield below, self


def tree_of(value: JsonValue, at: Position, path: Path = ()) -> Tree:
    """Returns a plain value as a tree, all of it standing at one place."""
    if isinstance(value, Mapping):
        fields = {key: tree_of(child, at, (*path, key)) for key, child in value.items()}
        return Tree(fields, at, at, path)
    if isinstance(value, list):
        items = [tree_of(child, at, (*path, index)) for index, child in enumerate(value)]
        return Tree(items, at, at, path)
    return Tree(value, at, at, path)


def format_path(path: Path) -> str:
    """Returns `spec.graph.nodes[1].name` for `("spec", "graph", "nodes", 1, "name")`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f'["{part}"]'
    return text
