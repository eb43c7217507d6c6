"""YAML events → trees, within limits; scalars are resolved as YAML 1.1 less its traps.

`5e-7` is a number (PyYAML wants `5.0e-7`), dates and `12:30:00` stay text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

import yaml

from mloc_dagster.compile.diagnostics import Diagnostic, Findings, at_position
from mloc_dagster.compile.tree import Path, Position, Scalar, Tree
from mloc_dagster.errors import TemplateError, nearest_hint

_MEANINGS: Mapping[str, Scalar] = {
    spelling: value
    for value, words in ((True, "yes true on"), (False, "no false off"), (None, "null"))
    for word in words.split()
    for spelling in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_NUMBERS_BEGIN = frozenset("+-.0123456789")
_INT = re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]+|0|[1-9][0-9_]*)")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_INF_NAN = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LARGEST = 2**63
_MAX_DIGITS = 400

_TAGS = {f"tag:yaml.org,2002:{name}": name for name in ("str", "int", "float", "bool", "null")}


def resolve_scalar(text: str, tag: str | None, *, plain: bool) -> Scalar:
    """Returns what a scalar means.

    Args:
        text: The scalar without its quotes.
        tag: Its explicit tag, if any.
        plain: Whether it stands without quotes.

    Raises:
        ValueError: If the tag is not one of JSON's types, or the text does not fit it.
    """
    if tag is None or tag == "!":
        return resolve_plain(text) if plain and tag is None else text
    kind = _TAGS.get(tag)
    if kind is None:
        raise ValueError(f"the tag {short_tag(tag)} is not allowed: a template holds plain data")
    if kind == "str":
        return text
    value = resolve_plain(text)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__.replace("NoneType", "null") != kind:
        raise ValueError(f"{text!r} is no {kind}, which its tag {short_tag(tag)} says")
    return value


def resolve_plain(text: str) -> Scalar:
    """Returns what an unquoted, untagged scalar means.

    Raises:
        ValueError: If it is a number that JSON cannot hold.
    """
    if text in _MEANINGS:
        return _MEANINGS[text]
    if text[0] not in _NUMBERS_BEGIN:
        return text
    if _INT.fullmatch(text):
        return _integer(text)
    if _INF_NAN.fullmatch(text):
        raise ValueError(f"{text!r} is not a finite number")
    if _FLOAT.fullmatch(text):
        number = float(text.replace("_", ""))
        if not math.isfinite(number):
            raise ValueError(f"{text[:40]!r} is too large for a number; quote it if it is text")
        return number
    return text


def _integer(text: str) -> int:
    digits = text.replace("_", "")
    body = digits.lstrip("+-")
    if len(body) > _MAX_DIGITS:
        raise ValueError(f"{text[:20] + '…'!r} is too large for a number; quote it if it is text")
    base = 10
    if body[:2] in ("0b", "0x"):
        base = 0
        if len(body) == len("0x"):
            raise ValueError(f"{text!r} has no digits; quote it if it is text")
    elif body.startswith("0") and body != "0":
        base = 8
    number = int(digits, base)
    if not -_LARGEST <= number < _LARGEST:
        raise ValueError(f"{text[:40]!r} is too large for a number; quote it if it is text")
    return number


def short_tag(tag: str) -> str:
    """Returns a tag as one writes it: `!!python/object`."""
    prefix = "tag:yaml.org,2002:"
    return f"!!{tag[len(prefix) :]}" if tag.startswith(prefix) else tag


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
