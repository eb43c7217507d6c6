"""What a launch may change of a task, as Dagster's launchpad shows it: made from the schema.

Each field of a task's spec is one of the config's, with its type, its description and its default
in words. What is left out stays as the template has it. Fields that hold secrets are left out:
run config is kept and shown.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from typing import Any, Literal, get_args, get_origin

import dagster as dg
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mloc_dagster.schema import RowSpec, TaskSpec, alternatives, hides

_NOT_HERE = frozenset({"task_type", "resources", "slo"})
"""What the fleet is told by tags of the job, and what makes the task another one."""

PROMPTS = "prompts"
"""A key beside those of the spec: the shortest way to other rows."""

_SCALARS: Mapping[type, type] = {bool: bool, int: int, float: float, str: str}


@cache
def launch_config(spec: type[TaskSpec]) -> Mapping[str, dg.Field]:
    """Returns the config of a launch, by the keys of the task's spec.

    Args:
        spec: The class of the spec.
    """
    found = _fields_of(spec.__name__, spec, _NOT_HERE)
    if issubclass(spec, RowSpec):
        found[PROMPTS] = dg.Field(
            [str], is_required=False, description="Rows instead of those that `data` names."
        )
    return found


def overrides_of(config: Mapping[str, Any]) -> str:
    """Returns what a launch changes, as JSON in the template's own structure."""
    changes = dict(config)
    prompts = changes.pop(PROMPTS, None)
    if prompts is not None:
        changes["data"] = {"type": "list", "items": prompts}
    return json.dumps(changes)


def _fields_of(
    place: str, block: type[BaseModel], left_out: Collection[str] = ()
) -> dict[str, dg.Field]:
    found: dict[str, dg.Field] = {}
    for name, info in block.model_fields.items():
        key = info.alias or name
        if name in left_out or hides(block, (key, "any key")):
            continue
        kind = _kind(f"{place}_{key}", info)
        if kind is not None:
            found[key] = dg.Field(kind, is_required=False, description=_about(info))
    return found


def _kind(place: str, info: FieldInfo) -> Any:
    """Returns the config type of a field; `Any` where YAML may hold several forms."""
    forms = list(alternatives(info.annotation))
    blocks = [each for each in forms if isinstance(each, type) and issubclass(each, BaseModel)]
    if blocks:
        return _block(place, blocks)
    if len(forms) == 1:
        return _single(place, forms[0])
    if set(forms) <= {int, float}:
        return float
    return dg.Any


def _single(place: str, form: Any) -> Any:
    origin, arguments = get_origin(form), get_args(form)
    if origin is Literal and all(isinstance(each, str) for each in arguments):
        return dg.Enum(place, [dg.EnumValue(each) for each in arguments])
    if origin in (tuple, list) and arguments and arguments[0] in _SCALARS:
        return [_SCALARS[arguments[0]]]
    if origin in (dict, Mapping):
        return dg.Permissive()
    return _SCALARS.get(form, dg.Any)


def _block(place: str, blocks: list[type[BaseModel]]) -> Any:
    """Returns a block; of several that one may choose from all their fields."""
    fields: dict[str, dg.Field] = {}
    for block in reversed(blocks):
        fields |= _fields_of(place, block)
    if len(blocks) > 1 and "type" in fields:
        tags = list(_tags(blocks))
        kind = dg.Enum(f"{place}_type", [dg.EnumValue(each) for each in tags])
        fields["type"] = dg.Field(kind, is_required=False, description="Which form the block has.")
    if not fields:
        return None
    is_open = any(block.model_config.get("extra") == "allow" for block in blocks)
    return dg.Permissive(fields) if is_open else dg.Shape(fields)


def _tags(blocks: list[type[BaseModel]]) -> Iterator[str]:
    seen: set[str] = set()
    for block in blocks:
        for tag in get_args(block.model_fields["type"].annotation):
            if tag not in seen:
                seen.add(tag)
                yield str(tag)


def _about(info: FieldInfo) -> str:
    text = " ".join((info.description or "").split())
    default = info.default
    plain = isinstance(default, bool | int | float | str) and default is not PydanticUndefined
    return f"{text} Default: {default}.".strip() if plain and default != "" else text
