"""Trees → blocks: pydantic's errors put in a template author's words, at their place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from mloc_dagster.compile.annotations import blocks_at, fields_of
from mloc_dagster.compile.diagnostics import (
    MOST_FINDINGS,
    Diagnostic,
    Findings,
    at_key,
    at_position,
    at_value,
)
from mloc_dagster.compile.tree import Path, Position, Tree, tree_of
from mloc_dagster.compile.wording import expectation, mismatch, shown
from mloc_dagster.errors import TemplateError, nearest_hint
from mloc_dagster.schema.base import Block, tags_of
from mloc_dagster.schema.markers import hides
from mloc_dagster.schema.task import Task
from mloc_dagster.schema.task_type import find_task_type


def validate[BlockT: Block](block: type[BlockT], tree: Tree, findings: Findings) -> BlockT | None:
    """Returns a tree as a block, or None after adding what is wrong with it."""
    try:
        return block.model_validate(tree.plain())
    except ValidationError as error:
        for each in _translate(error, block, tree):
            findings.add(each)
        return None


def task_from_mapping(name: str, depends_on: tuple[str, ...], spec: JsonValue) -> Task:
    """Returns a typed task from a merged, normalised spec.

    Raises:
        TemplateError: If the spec does not fit its task type.
        UnknownNameError: If nobody registered the task type.
        TerminalError: If it cannot be loaded.
    """
    findings = Findings()
    tree = tree_of(spec, Position(f"task {name!r}"), ("spec",))
    named = tree.fields.get("taskType")
    if named is None or named.text is None:
        raise TemplateError([at_value(tree, "'taskType' is missing")])
    typed = validate(find_task_type(named.text).spec, tree, findings)
    findings.raise_errors()
    return Task.model_construct(name=name, depends_on=depends_on, spec=typed)


@dataclass(frozen=True, slots=True)
class _Located:
    detail: ErrorDetails
    tree: Tree
    missing: str | None
    union: Tree | None


def _translate(error: ValidationError, block: type[Block], tree: Tree) -> Iterable[Diagnostic]:
    unions: dict[Path, list[_Located]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        located = _locate(detail, tree)
        if located.union is None:
            yield _diagnose(located, block)
        else:
            unions.setdefault(located.union.path, []).append(located)
        if len(unions) > MOST_FINDINGS + 1:  # the last one may lack some of its alternatives
            break
    for group in unions.values():
        yield from _diagnose_union(group, block)


def _locate(detail: ErrorDetails, tree: Tree) -> _Located:
    missing: str | None = None
    union: Tree | None = None
    last = len(detail["loc"]) - 1
    for place, step in enumerate(detail["loc"]):
        tag = tree.fields.get("type")
        if tag is not None and tag.content == step and detail["type"] != "extra_forbidden":
            continue
        child = _child(tree, step)
        if child is not None:
            tree = child
        elif place == last and detail["type"] == "missing":
            missing = str(step)
        elif tag is None or tag.content != step:
            union = union or tree
    return _Located(detail, tree, missing, union)


def _child(tree: Tree, step: str | int) -> Tree | None:
    if isinstance(step, str):
        return tree.fields.get(step)
    return tree.items[step] if step < len(tree.items) else None


def _diagnose_union(group: list[_Located], block: type[Block]) -> Iterable[Diagnostic]:
    deepest = max(len(item.tree.path) for item in group)
    group = [item for item in group if len(item.tree.path) == deepest]
    if deepest > len(group[0].union.path if group[0].union else ()):
        return [_diagnose(item, block) for item in group]
    expected = " or ".join(dict.fromkeys(expectation(item.detail) for item in group))
    tree = group[0].tree
    secret = any(hides(block, item.detail["loc"]) for item in group)
    return [at_value(tree, mismatch(expected, tree, secret=secret))]


def _diagnose(located: _Located, block: type[Block]) -> Diagnostic:
    detail, tree = located.detail, located.tree
    kind = detail["type"]
    if located.missing is not None:
        path = (*tree.path, located.missing)
        return at_position(tree.key, path, f"{located.missing!r} is required")
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        known = {key for found in blocks_at(block, detail["loc"][:-1]) for key in fields_of(found)}
        return at_key(tree, f"unknown key {name!r}{nearest_hint(name, known)}")
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tags = [tag for found in blocks_at(block, detail["loc"]) for tag in tags_of(found)]
        return _bad_tag(tree, tags)
    if kind == "value_error":
        return at_value(tree, detail["msg"].removeprefix("Value error, "))
    if kind == "literal_error":
        value = tree.plain()
        known = [str(name) for name in expected_literals(detail)]
        hint = nearest_hint(str(value), known)
        return at_value(tree, f"unknown value {shown(tree)}{hint}")
    secret = hides(block, detail["loc"])
    return at_value(tree, mismatch(expectation(detail), tree, secret=secret))


def expected_literals(detail: ErrorDetails) -> list[str]:
    """Returns the values that a literal field takes."""
    expected: str = detail.get("ctx", {}).get("expected", "")
    return expected.replace("' or '", "', '").strip("'").split("', '")


def _bad_tag(tree: Tree, tags: list[str]) -> Diagnostic:
    tag = tree.fields.get("type")
    if tag is None:
        listed = ", ".join(repr(name) for name in tags)
        return at_position(tree.key, (*tree.path, "type"), f"'type' is required: one of {listed}")
    return at_value(tag, f"unknown type {shown(tag)}{nearest_hint(str(tag.content), tags)}")
