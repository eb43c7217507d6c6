"""Applies the table of old spellings to a spec."""

from __future__ import annotations

from mloc_dagster.compile.diagnostics import Findings, at_key, at_value
from mloc_dagster.compile.tree import Path, Tree
from mloc_dagster.schema.legacy import SPELLINGS, KeyPath, Spelling


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
