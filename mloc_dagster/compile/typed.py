"""Trees → typed blocks; pydantic's errors are reworded for template authors and get a position."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args, get_origin

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from mloc_dagster.compile.diagnostics import (
    MOST_FINDINGS,
    Diagnostic,
    Findings,
    at_key,
    at_position,
    at_value,
)
from mloc_dagster.compile.tree import Path, Position, Tree, tree_of
from mloc_dagster.errors import TemplateError, nearest_hint
from mloc_dagster.schema import (
    Annotation,
    Block,
    Task,
    alternatives,
    find_task_type,
    hides,
    tags_of,
)


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


_SHOWN = 60

_EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


def expectation(detail: ErrorDetails) -> str:
    """Returns what a field wants, as the object of "expected"."""
    kind = detail["type"]
    if kind == "string_pattern_mismatch":
        pattern: str = detail.get("ctx", {}).get("pattern", "")
        if "https?" in pattern:
            return "an http:// or https:// URL"
        return "letters, digits, '.', '_' and '-', with a letter or digit at both ends"
    template = _EXPECTED.get(kind)
    if template is None:
        return detail["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return template.format(**detail.get("ctx", {})).replace(" 1 characters", " 1 character")


def mismatch(expected: str, tree: Tree, *, secret: bool = False) -> str:
    """Returns what was expected and what stands there, unless it may be a secret."""
    if secret:
        return f"expected {expected}, got something else"
    hint = ""
    if expected == "text" and isinstance(tree.content, int | float) and tree.raw is not None:
        hint = f"; write it in quotes: '{tree.raw}'"
    return f"expected {expected}, got {shown(tree)}{hint}"


def shown(tree: Tree) -> str:
    """Returns a value for a message: short, as the author wrote it. No secret may come here."""
    if tree.raw is not None and tree.raw.startswith("${") and tree.content != tree.raw:
        return f"{tree.raw}, which is {_kind(tree)}"
    if isinstance(tree.content, bool):
        value = json.dumps(tree.content)
        if tree.raw is not None and tree.raw.lower() != value:
            return f"{tree.raw}, which YAML reads as {value}"
        return value
    if tree.content is None:
        return "nothing"
    if isinstance(tree.content, dict):
        return f"a mapping with {', '.join(map(repr, list(tree.content)[:5])) or 'nothing in it'}"
    if isinstance(tree.content, list):
        return f"a list of {len(tree.content)}"
    if isinstance(tree.content, str):
        text = repr(tree.content)
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
    return f"{tree.raw or tree.content}"


def _kind(tree: Tree) -> str:
    if isinstance(tree.content, bool):
        return "true or false"
    kinds = {
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "dict": "a mapping",
        "list": "a list",
    }
    return kinds.get(type(tree.content).__name__, "nothing")


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
    # A block's own rule speaks only once the form fits: that block was meant.
    meant = [item for item in group if item.detail["type"] == "value_error"]
    if meant:
        return [_diagnose(item, block) for item in meant]
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
