"""What is wrong with a template, and where; old spellings of a spec."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from pydantic import JsonValue

from mloc_dagster.compile.tree import Path, Position, Tree, format_path
from mloc_dagster.errors import TemplateError
from mloc_dagster.schema import SPELLINGS, KeyPath, Spelling

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    Attributes:
        file: The file as it was named.
        line: Line, from 1; 0 when the finding concerns the whole file.
        column: Column, from 1.
        path: Path in the document, such as `spec.stages[0].name`.
        message: What was wrong, what was expected, the nearest valid name.
        severity: An error keeps the template from running.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        label = "warning: " if self.severity == "warning" else ""
        return (
            f"{place}: {self.path}: {label}{self.message}"
            if self.path
            else (f"{place}: {label}{self.message}")
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Returns the finding for machines."""
        return asdict(self)


def at_position(
    position: Position, path: Path, message: str, severity: Severity = "error"
) -> Diagnostic:
    """Returns a finding at a place that is not a tree's."""
    return Diagnostic(*position, format_path(path), message, severity)


def at_value(tree: Tree, message: str, severity: Severity = "error") -> Diagnostic:
    """Returns a finding about a value."""
    return at_position(tree.at, tree.path, message, severity)


def at_key(tree: Tree, message: str, severity: Severity = "error") -> Diagnostic:
    """Returns a finding about the key that leads to a value."""
    return at_position(tree.key, tree.path, message, severity)


MOST_FINDINGS = 1_000
"""Findings that are looked for in one template: more help nobody, and each takes its time."""


class Findings:
    """Collects findings, each once, so that a user sees all of them together."""

    def __init__(self) -> None:
        self._seen: dict[Diagnostic, None] = {}

    def add(self, *findings: Diagnostic) -> None:
        """Adds findings; one that is known already stays as it is.

        Raises:
            TemplateError: If there are so many that looking for more is a waste of time.
        """
        self._seen.update(dict.fromkeys(findings))
        if len(self._seen) <= MOST_FINDINGS or not self.errors:
            return
        last = next(reversed(self._seen))
        message = f"more than {MOST_FINDINGS:,} findings: the rest was not looked at"
        raise TemplateError([*self.errors, replace(last, path="", message=message)])

    @property
    def errors(self) -> tuple[Diagnostic, ...]:
        """The errors, in file order."""
        return self._of("error")

    @property
    def warnings(self) -> tuple[Diagnostic, ...]:
        """The warnings, in file order."""
        return self._of("warning")

    def raise_errors(self) -> None:
        """Raises all errors as one.

        Raises:
            TemplateError: If there is any error.
        """
        if self.errors:
            raise TemplateError(self.errors)

    def _of(self, severity: Severity) -> tuple[Diagnostic, ...]:
        return in_file_order([item for item in self._seen if item.severity == severity])


def errors_of(findings: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Returns the findings that keep a template from running."""
    return [each for each in findings if each.severity == "error"]


def in_file_order(findings: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Returns findings by line and column; files keep their order."""
    files = {name: place for place, name in enumerate(dict.fromkeys(f.file for f in findings))}
    return tuple(sorted(findings, key=lambda item: (files[item.file], item.line, item.column)))


def normalise(spec: Tree, findings: Findings) -> Tree:
    """Returns a spec with today's keys only; notes each old one as a warning."""
    for spelling in SPELLINGS:
        old = find(spec, spelling.old)
        if old is not None:
            spec = _apply(spec, spelling, old, findings)
    return _drop_absolute_path(spec, findings)


def find(tree: Tree, path: Path) -> Tree | None:
    """Returns the value at a path below, or None."""
    for step in path:
        child = (
            tree.fields.get(step)
            if isinstance(step, str)
            else (tree.items[step] if step < len(tree.items) else None)
        )
        if child is None:
            return None
        tree = child
    return tree


def put(tree: Tree, path: KeyPath, value: Tree) -> Tree:
    """Returns a mapping with a value at a path below; missing mappings in between are made."""
    head, *rest = path
    if rest:
        inner = tree.fields.get(head) or Tree({}, value.at, value.key, value.path[:-1])
        if not isinstance(inner.content, dict):
            return tree
        value = put(inner, tuple(rest), value)
    return tree.with_fields({**tree.fields, head: value})


def remove(tree: Tree, path: KeyPath) -> Tree:
    """Returns a mapping without a value; a nested mapping that this empties goes as well."""
    head, *rest = path
    fields = dict(tree.fields)
    child = fields.pop(head)
    if rest:
        inner = remove(child, tuple(rest))
        if inner.fields or (len(rest) == 1 and head in ("data", "training")):
            fields = {**tree.fields, head: inner}
    return tree.with_fields(fields)


def merge_value(tree: Tree, path: KeyPath, value: Tree, findings: Findings) -> Tree:
    """Puts a value at a path unless it is there already; two different values are an error."""
    known = find(tree, path)
    if known is None:
        return put(tree, path, value)
    if known.plain() != value.plain():
        message = (
            f"says {_short(value)} where {'.'.join(path)!r} says {_short(known)} "
            f"(line {known.key.line}); keep one of them"
        )
        findings.add(at_key(value, message))
    return tree


def _apply(spec: Tree, spelling: Spelling, old: Tree, findings: Findings) -> Tree:
    name = spelling.old[-1]
    spec = remove(spec, spelling.old)
    if spelling.new is None:
        message = f"{name!r} has no effect (line {old.key.line}): {spelling.why}"
        findings.add(at_key(old, message, "warning"))
        return spec
    if not spelling.silent:
        now = spelling.new[-1]
        if spelling.new[:-1] != spelling.old[:-1]:
            now = ".".join(spelling.new)
        message = f"{name!r} is called {now!r} today (line {old.key.line})"
        findings.add(at_key(old, message, "warning"))
    return merge_value(spec, spelling.new, old, findings)


def _drop_absolute_path(spec: Tree, findings: Findings) -> Tree:
    destination = ("output", "destination", "path")
    path = find(spec, destination)
    if path is None or not (path.text or "").startswith(("/", "~")):
        return spec
    message = f"the absolute path {path.text!r} is ignored; a path is relative to the results"
    findings.add(at_value(path, message, "warning"))
    parent = find(spec, destination[:-1])
    fields = {key: value for key, value in (parent or path).fields.items() if key != "path"}
    return put(spec, destination[:-1], (parent or path).with_fields(fields))


def _short(tree: Tree) -> str:
    text = repr(tree.plain())
    return text if len(text) <= 40 else text[:39] + "…"
