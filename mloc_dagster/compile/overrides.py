"""Changing a template from outside: `--set path=value`, and Dagster's launchpad."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import JsonValue

from mloc_dagster.compile.diagnostics import Diagnostic, Findings, find, normalise, put, remove
from mloc_dagster.compile.loader import Document, parse_documents
from mloc_dagster.compile.nodes import merge
from mloc_dagster.compile.tree import Path, Position, Tree, format_path, tree_of
from mloc_dagster.errors import InputError, TemplateError, UnknownNameError, nearest_hint
from mloc_dagster.schema import SPELLINGS, KeyPath

_STEP = re.compile(
    r"""(?:^|\.)(?P<key>[A-Za-z0-9_-]+)|\[(?:"(?P<quoted>[^"]*)"|(?P<item>[^\]]+))\]"""
)
_ROOTS = ("apiVersion", "kind", "metadata", "spec")
_NODE_LISTS: tuple[KeyPath, ...] = (("spec", "stages"), ("spec", "graph", "nodes"))


Sets = Sequence[str] | Mapping[str, JsonValue]
"""Changes of a template: `path=value` with the value as YAML, or values by path."""


def apply_sets(document: Document, assignments: Sets) -> Document:
    """Returns a document with values replaced, as `mloc run --set path=value` asks.

    A path picks items of a list by index, and stages and nodes by name too:
    `spec.stages[draft].spec.inference.temperature=0`. A path into the template's own spec, such
    as `spec.model.source.identifier=tiny-chat`, sets the base that all nodes inherit from, and
    also each node's own value where a node has one: afterwards all tasks that use it have it.

    Raises:
        TemplateError: If an assignment cannot be read or its path leads nowhere.
    """
    root = document.root
    findings = Findings()
    if isinstance(assignments, Mapping):
        changes = [(f"set {path}", path, value) for path, value in assignments.items()]
    else:
        changes = [(f"--set {each}", each, None) for each in assignments]
    for shown, assignment, value in changes:
        try:
            if isinstance(assignments, Mapping):
                root = _assign(root, assignment, value, "set")
            else:
                root = _assign(root, *_read(assignment), "--set")
        except InputError as error:
            findings.add(Diagnostic(shown, 0, 0, "", str(error)))
    findings.raise_errors()
    return Document(document.name, root)


def is_set(at: Position) -> bool:
    """Returns whether a value comes from a change, and not from the template."""
    return at.line == 0 and at.file.startswith(("--set ", "set "))


def merge_overrides(
    mapping: Mapping[str, JsonValue], node: str | None, overrides: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Returns a template whose node has parts of its spec replaced.

    Args:
        mapping: The template.
        node: A stage or node; None or the template's own name for a template of one task.
        overrides: Laid over the spec: mappings recursively, everything else replaces.

    Raises:
        UnknownNameError: If the template has no such node.
    """
    root = tree_of(dict(mapping), Position("template"))
    if not overrides:
        return dict(mapping)
    path = _spec_of(root, node)
    spec = find(root, path) or tree_of({}, Position("template"), path)
    over = tree_of(dict(overrides), Position("overrides"), path)
    changed = replace_at(root, path, merge(normalise(spec, Findings()), over))
    return changed.mapping()


def _spec_of(root: Tree, node: str | None) -> Path:
    names: list[str] = []
    for index_path, name in _nodes(root):
        names.append(name)
        if name == node:
            return (*index_path, "spec")
    own = find(root, ("metadata", "name"))
    if not names and node in (None, own.text if own is not None else None):
        return ("spec",)
    known = names or [own.text or ""] if own is not None else names
    raise UnknownNameError("node", node or "", known)


def spec_paths(root: Tree) -> Iterator[Path]:
    """Yields where the template's own spec stands, and that of each stage or node."""
    yield ("spec",)
    for path, _ in _nodes(root):
        yield (*path, "spec")


def _nodes(root: Tree) -> Iterator[tuple[Path, str]]:
    for path in _NODE_LISTS:
        entries = find(root, path)
        for index, entry in enumerate(entries.items if entries is not None else ()):
            name = entry.fields.get("name")
            yield (*path, index), (name.text or "") if name is not None else ""


def _read(assignment: str) -> tuple[str, JsonValue]:
    text, equals, value_text = assignment.partition("=")
    if not equals:
        raise InputError("expected path=value, such as spec.inference.temperature=0")
    return text, _value(value_text, assignment)


def _assign(root: Tree, text: str, value: JsonValue, origin: str) -> Tree:
    path = _resolve(root, _parse(text.strip()))
    if path[0] != "spec" or any(path[: len(prefix)] == prefix for prefix in _NODE_LISTS):
        return _put_value(root, path, value, origin)
    inner = path[1:]
    root = _put_value(root, path, value, origin)
    for node_path, _ in _nodes(root):
        own = find(root, (*node_path, "spec"))
        if own is not None and _sets(own, inner):
            root = _put_value(root, (*node_path, "spec", *inner), value, origin)
    return root


def _value(text: str, assignment: str) -> JsonValue:
    try:
        # A mapping around the value lets it be any YAML, a bare `null` as well.
        document = parse_documents(f"value: {text}\n", f"--set {assignment}")
    except TemplateError as error:
        first = error.diagnostics[0]
        reason = first.message if isinstance(first, Diagnostic) else str(first)
        raise InputError(f"the value {text!r}: {reason}") from error
    if len(document) != 1 or list(document[0].mapping) != ["value"]:
        raise InputError(f"the value {text!r} is more than one value")
    return document[0].mapping["value"]


def _parse(text: str) -> Path:
    steps: list[str | int] = []
    end = 0
    while end < len(text):
        match = _STEP.match(text, end)
        if match is None:
            raise InputError(f"cannot read the path {text!r} from {text[end:]!r} on")
        item: str | None = match["item"]
        if item is not None:
            steps.append(int(item) if item.isdecimal() else f"[{item}]")
        else:
            steps.append(match["key"] if match["key"] is not None else match["quoted"])
        end = match.end()
    if not steps or steps[0] not in _ROOTS:
        first = str(steps[0]) if steps else ""
        raise InputError(f"a path starts at the document{nearest_hint(first, _ROOTS)}")
    if len(steps) == 1 and steps[0] in ("metadata", "spec"):
        raise InputError(f"name a key below {steps[0]!r}")
    return tuple(steps)


def _resolve(root: Tree, path: Path) -> Path:
    """Turns names of stages and nodes into indexes; refuses paths that lead nowhere."""
    found: list[str | int] = []
    tree: Tree | None = root
    for step in path:
        where = format_path(tuple(found))
        if tree is not None and isinstance(tree.content, list):
            step = _index(tree, step, where)
            tree = tree.items[step]
        elif isinstance(step, int) or step.startswith("["):
            picked = f"[{step}]" if isinstance(step, int) else step
            raise InputError(f"{where!r} is not a list, {picked} picks nothing in it")
        elif tree is not None and not isinstance(tree.content, dict | None):
            raise InputError(f"{where!r} is a single value; it has no key {step!r}")
        else:
            tree = tree.fields.get(step) if tree is not None else None
        found.append(step)
    return tuple(found)


def _index(tree: Tree, step: str | int, where: str) -> int:
    if isinstance(step, int):
        if step >= len(tree.items):
            raise InputError(f"{where!r} has {len(tree.items)} items, [{step}] is past the end")
        return step
    name = step.strip("[]").strip("'\"")
    names = [
        (child.fields["name"].text or "") if "name" in child.fields else "" for child in tree.items
    ]
    if name in names:
        return names.index(name)
    hint = nearest_hint(name, [each for each in names if each])
    raise InputError(f"{where!r} has no item {name!r}{hint}")


def _put_value(root: Tree, path: Path, value: JsonValue, origin: str) -> Tree:
    for start in _spec_ends(path):
        inner = path[start:]
        if all(isinstance(step, str) for step in inner):
            keys = tuple(str(step) for step in inner)
            spec, keys = _today(find(root, path[:start]) or root, keys)
            root = replace_at(root, path[:start], spec)
            path = (*path[:start], *keys)
    leaf = tree_of(value, Position(f"{origin} {format_path(path)}"), path)
    return replace_at(root, path, leaf)


def _spec_ends(path: Path) -> Iterator[int]:
    """Yields the length of the prefix that leads to the innermost spec."""
    ends = [place + 1 for place, step in enumerate(path) if step == "spec" and place in (0, 3, 4)]
    if ends and len(path) > ends[-1]:
        yield ends[-1]


def _today(spec: Tree, keys: KeyPath) -> tuple[Tree, KeyPath]:
    """Returns the spec without other spellings of a key, and the key's own name."""
    keys = next((each.new for each in SPELLINGS if each.old == keys and each.new), keys)
    for spelling in SPELLINGS:
        if spelling.new == keys and find(spec, spelling.old) is not None:
            spec = remove(spec, spelling.old)
    return spec, keys


def _sets(own: Tree, inner: Path) -> bool:
    if find(own, inner) is not None:
        return True
    keys = tuple(str(step) for step in inner)
    today = next((each.new for each in SPELLINGS if each.old == keys and each.new), keys)
    others = [each.old for each in SPELLINGS if each.new == today]
    return any(find(own, other) is not None for other in (today, *others))


def replace_at(tree: Tree, path: Path, value: Tree) -> Tree:
    """Returns a tree with another value at a path; missing mappings in between are made."""
    if not path:
        return value
    head, *rest = path
    if isinstance(head, int):
        items = list(tree.items)
        items[head] = replace_at(items[head], tuple(rest), value)
        return replace(tree, content=items)
    child = tree.fields.get(head) or Tree({}, value.at, value.key, (*tree.path, head))
    if child.content is None and rest:
        child = child.with_fields({})
    return put(tree, (head,), replace_at(child, tuple(rest), value))
