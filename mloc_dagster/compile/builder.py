"""YAML events → trees. Built from events and not from nodes, so that limits hold while reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import yaml

from mloc_dagster.compile.diagnostics import Diagnostic, Findings, at_position
from mloc_dagster.compile.scalars import resolve_scalar, short_tag
from mloc_dagster.compile.tree import Path, Position, Tree
from mloc_dagster.errors import TemplateError, nearest_hint

MAX_NODES = 250_000
"""Values in a file, aliases expanded. A file of MAX_BYTES that needs more is not a template."""

MAX_DEPTH = 64

_COLLECTION_TAGS = (None, "!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


class TreeBuilder:
    """Reads the documents of one YAML text.

    Args:
        text: The YAML.
        file: The file's name, for positions.
        findings: Takes what is wrong but does not stop the reading.
    """

    def __init__(self, text: str, file: str, findings: Findings) -> None:
        self._parser = yaml.CSafeLoader(text)
        self._file = file
        self._findings = findings
        self._nodes = 0
        self._anchors: dict[str, Tree | None] = {}

    def documents(self) -> Iterator[Tree]:
        """Yields the root of each document.

        Raises:
            TemplateError: If a limit is passed.
            yaml.YAMLError: If the text is not YAML.
        """
        while not isinstance(event := self._event(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                yield self._build(self._event(), (), None)

    def _event(self) -> yaml.Event:
        event = self._parser.get_event()
        # The parser ends a stream with an event of its own, and nobody reads on after that.
        return event or yaml.StreamEndEvent()

    def _build(self, event: yaml.Event, path: Path, key: Position | None) -> Tree:
        at = self._position(event)
        self._count(at, path)
        if isinstance(event, yaml.AliasEvent):
            return self._expand(event, path, key or at)
        anchor: str | None = getattr(event, "anchor", None)
        if anchor is not None:
            self._anchors[anchor] = None
        tree = self._content(event, path, at, key or at)
        if anchor is not None:
            self._anchors[anchor] = tree
        return tree

    def _content(self, event: yaml.Event, path: Path, at: Position, key: Position) -> Tree:
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, path, at, key)
        tag: str | None = getattr(event, "tag", None)
        if tag not in _COLLECTION_TAGS:
            message = f"the tag {short_tag(tag or '')} is not allowed: a template holds plain data"
            self._findings.add(at_position(at, path, message))
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Tree] = []
            while not isinstance(event := self._event(), yaml.SequenceEndEvent):
                items.append(self._build(event, (*path, len(items)), None))
            return Tree(items, at, key, path)
        return Tree(self._mapping(path), at, key, path)

    def _scalar(self, event: yaml.ScalarEvent, path: Path, at: Position, key: Position) -> Tree:
        raw: str = event.value
        try:
            value = resolve_scalar(raw, event.tag, plain=not event.style)
        except ValueError as error:
            self._findings.add(at_position(at, path, str(error)))
            value = raw
        return Tree(value, at, key, path, raw)

    def _mapping(self, path: Path) -> dict[str, Tree]:
        fields: dict[str, Tree] = {}
        merged: list[Tree] = []
        while not isinstance(event := self._event(), yaml.MappingEndEvent):
            at = self._position(event)
            if isinstance(event, yaml.ScalarEvent) and event.value == "<<" and not event.style:
                merged += self._merge_sources(self._build(self._event(), (*path, "<<"), at))
                continue
            name = self._key(self._build(event, (*path, "?"), None))
            value = self._build(self._event(), (*path, name), at)
            if name in fields:
                first = fields[name].key.line
                message = f"the key {name!r} stands here twice; first in line {first}"
                self._findings.add(at_position(at, (*path, name), message))
            fields[name] = value
        for source in merged:
            for name, value in source.fields.items():
                if name not in fields:
                    fields[name] = self._copy(value, (*path, name), value.key)
        return fields

    def _key(self, key: Tree) -> str:
        if isinstance(key.content, str):
            return key.content
        if key.raw is not None:
            hint = f"; write it in quotes: '{key.raw}'"
            meaning = "" if key.content is None else f", which YAML reads as {key.content!r}"
            message = f"a key must be text, not {key.raw!r}{meaning}{hint}"
        else:
            message = "a key must be text, not a list or a mapping"
        self._findings.add(at_position(key.at, key.path[:-1], message))
        return key.raw or ""

    def _merge_sources(self, value: Tree) -> list[Tree]:
        sources = value.items if isinstance(value.content, list) else [value]
        for source in sources:
            if not isinstance(source.content, dict):
                message = "`<<` takes a mapping or a list of mappings"
                self._findings.add(at_position(source.at, value.path, message))
        return sources

    def _expand(self, event: yaml.AliasEvent, path: Path, key: Position) -> Tree:
        name: str = event.anchor or ""
        at = self._position(event)
        tree = self._anchors.get(name)
        if tree is not None:
            return self._copy(tree, path, key)
        if name in self._anchors:
            message = f"the alias *{name} stands inside the value that it names"
        else:
            message = f"nothing above is anchored as &{name}{nearest_hint(name, self._anchors)}"
        self._findings.add(at_position(at, path, message))
        return Tree(None, at, key, path)

    def _copy(self, tree: Tree, path: Path, key: Position) -> Tree:
        self._count(key, path)
        if isinstance(tree.content, dict):
            fields = {
                name: self._copy(child, (*path, name), child.key)
                for name, child in tree.content.items()
            }
            return replace(tree, content=fields, path=path, key=key)
        if isinstance(tree.content, list):
            items = [
                self._copy(child, (*path, index), child.key)
                for index, child in enumerate(tree.content)
            ]
            return replace(tree, content=items, path=path, key=key)
        return replace(tree, path=path, key=key)

    def _count(self, at: Position, path: Path) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise TemplateError(
                [_limit(at, f"more than {MAX_NODES:,} values, aliases expanded: not a template")]
            )
        if len(path) > MAX_DEPTH:
            raise TemplateError([_limit(at, f"nested more than {MAX_DEPTH} levels deep")])

    def _position(self, event: yaml.Event) -> Position:
        mark = event.start_mark
        return Position(self._file, mark.line + 1, mark.column + 1)


def _limit(at: Position, message: str) -> Diagnostic:
    return at_position(at, (), message)
