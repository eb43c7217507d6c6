"""Renders docs/templates.md and templates/mloc.schema.json from the schema.

Run it after each change to `mloc_dagster/schema`: `python scripts/build_template_docs.py`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mloc_dagster.compile import idle_fields
from mloc_dagster.schema import (
    SPELLINGS,
    Annotation,
    Block,
    Metadata,
    Partitions,
    Schedule,
    TaskSpec,
    TrainingSpec,
    alternatives,
    task_types,
    template_json_schema,
)

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "templates.md"
SCHEMA = ROOT / "templates" / "mloc.schema.json"
_INTRO = Path(__file__).with_name("template_docs_intro.md")

_WORDS = {str: "text", int: "whole number", float: "number", bool: "true/false", SecretStr: "text"}
_BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}


def render_docs() -> str:
    """Returns docs/templates.md."""
    parts = [_INTRO.read_text(encoding="utf-8").rstrip(), "## Every key"]
    blocks = _reachable()
    for block, task_type in blocks.items():
        title = f"`{task_type}`" if task_type else block.__name__
        prefix = "### Task type " if task_type else "### "
        about = " ".join((block.__doc__ or "").split("\n\n")[0].split())
        table = f"\n\n{_table(block, bool(task_type))}" if _fields(block) else ""
        parts.append(f"{prefix}{title}\n\n{about}{table}")
    parts += [_without_effect(), _old_spellings()]
    return "\n\n".join(parts) + "\n"


def render_schema() -> str:
    """Returns templates/mloc.schema.json."""
    return json.dumps(template_json_schema(), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes both files."""
    DOCS.write_text(render_docs(), encoding="utf-8")
    SCHEMA.write_text(render_schema(), encoding="utf-8")
    print(f"wrote {DOCS.relative_to(ROOT)} and {SCHEMA.relative_to(ROOT)}")


def _reachable() -> dict[type[Block], str | None]:
    """Returns every block in reading order; for specs with their task type."""
    found: dict[type[Block], str | None] = {Metadata: None, TaskSpec: None}
    found |= {each.spec: name for name, each in task_types().items()}
    waiting: list[type[Block]] = [*found, Schedule, *_blocks(Partitions)]
    while waiting:
        block = waiting.pop(0)
        found.setdefault(block, None)
        below = [each for field in _fields(block).values() for each in _blocks(field.annotation)]
        waiting += [each for each in below if each not in found and each not in waiting]
    return found


def _fields(block: type[Block]) -> dict[str, FieldInfo]:
    return {**block.model_fields, **block.registered_fields()}


def _blocks(annotation: Annotation) -> Iterator[type[Block]]:
    for member in alternatives(annotation):
        if isinstance(member, type) and issubclass(member, Block):
            yield member
        else:
            for inner in get_args(member):
                if not isinstance(inner, str):
                    yield from _blocks(inner)


def _table(block: type[Block], is_spec: bool) -> str:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    inherited = TaskSpec.model_fields if is_spec else {}
    for name, field in _fields(block).items():
        if name not in inherited:
            cells = (
                f"`{field.alias or name}`",
                _type(field.annotation) + _bounds(field),
                _default(field),
                _escape(" ".join((field.description or "").split())),
            )
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _type(annotation: Annotation) -> str:
    return " or ".join(dict.fromkeys(_one_type(member) for member in alternatives(annotation)))


def _one_type(member: Annotation) -> str:
    origin, args = get_origin(member), get_args(member)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    if origin in (tuple, list):
        return f"list of {_type(args[0])}"
    if origin in (dict, Mapping):
        return "mapping"
    if isinstance(member, type) and issubclass(member, Block):
        return f"[{member.__name__}](#{member.__name__.lower()})"
    if isinstance(member, types.GenericAlias):
        return "mapping"
    return _WORDS.get(member, "anything")


def _bounds(field: FieldInfo) -> str:
    found = [
        text.format(getattr(each, name))
        for each in field.metadata
        for name, text in _BOUNDS.items()
        if getattr(each, name, None) is not None
    ]
    return f", {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.alias == "taskType":
        return "from `kind`"
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or value in ((), {}) or isinstance(value, Block):
        return ""
    plain = list(value) if isinstance(value, tuple) else value
    return f"`{json.dumps(plain, ensure_ascii=False)}`"


def _without_effect() -> str:
    rows = [
        "## Fields without effect",
        "",
        "A field that changes nothing in its task is a warning with its line. A value in the",
        "template's own spec counts as read if any of the stages or nodes reads it.",
        "",
        "| field | in tasks of type | has no effect | because |",
        "|---|---|---|---|",
    ]
    everyone = {TaskSpec: "all", TrainingSpec: "training"}
    for rule in idle_fields():
        names = [name for name, each in task_types().items() if issubclass(each.spec, rule.specs)]
        named = everyone.get(rule.specs[0]) or ", ".join(sorted(names))
        when = "ever" if rule.when is None else "where that is so"
        rows.append(f"| `{rule.field}` | {named} | {when} | {rule.why} |")
    return "\n".join(rows)


def _old_spellings() -> str:
    rows = [
        "## Old spellings",
        "",
        "Read as today's, with a warning unless they are as good as these.",
        "",
        "| old | today |",
        "|---|---|",
    ]
    for spelling in SPELLINGS:
        now = f"`{'.'.join(spelling.new)}`" if spelling.new else f"no effect: {spelling.why}"
        rows.append(f"| `{'.'.join(spelling.old)}` | {now} |")
    return "\n".join(rows)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
