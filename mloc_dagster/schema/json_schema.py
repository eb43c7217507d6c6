"""The JSON Schema of a template, for editors: completion, descriptions, unknown keys.

It is a little more lenient than the compiler: what a stage leaves out may come from the base, so
nothing is required there, and references are not followed.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from mloc_dagster.schema.engine_type import engine_types
from mloc_dagster.schema.legacy import SPELLINGS, Spelling
from mloc_dagster.schema.model import Model, TrainedModel
from mloc_dagster.schema.partitions import Partitioned
from mloc_dagster.schema.resources import Schedule
from mloc_dagster.schema.task import Metadata
from mloc_dagster.schema.task_type import all_kinds, task_types, types_of_kind
from mloc_dagster.schema.template import Node, Template

Schema = dict[str, Any]

_REF = "#/$defs/"
_PARTIAL = "Partial"
_REFERENCE: Schema = {
    "type": "string",
    "pattern": r"^\$\{.+\}$",
    "description": "A value of an earlier task's result: `${node.result.usage.num_requests}`.",
}
_NUMBERS = ("integer", "number", "boolean")


def template_json_schema() -> Schema:
    """Returns the schema (draft 2020-12) of one template document."""
    defs, named = _definitions()
    specs = {name: named[each.spec] for name, each in task_types().items()}
    for name, definition in specs.items():
        defs[definition]["properties"]["taskType"]["const"] = name
    defs[named[Template]]["properties"]["kind"]["enum"] = list(all_kinds())
    for model in (Model, TrainedModel):
        _add_engines(defs[named[model]], model, named)
    for definition in defs.values():
        _allow_references(definition)
    for spelling in SPELLINGS:
        _add_spelling(defs, specs.values(), spelling)
    defs["Reference"] = _REFERENCE
    partial = {f"{name}{_PARTIAL}": _partial(each) for name, each in defs.items()}
    defs |= {name: each for name, each in partial.items() if name != f"Reference{_PARTIAL}"}
    return _root(defs, named, specs)


def _definitions() -> tuple[Schema, Mapping[type, str]]:
    """Returns a schema of each block, and its name: two classes may be called the same."""
    blocks = [
        *(each.spec for each in task_types().values()),
        *(each.options for each in engine_types().values()),
        *(Metadata, Schedule, Partitioned, Node, Template, Model, TrainedModel),
    ]
    places, generated = models_json_schema([(block, "validation") for block in blocks])
    named = {block: places[block, "validation"]["$ref"].removeprefix(_REF) for block in blocks}
    return generated["$defs"], named


def _add_engines(definition: Schema, model: type[Model], named: Mapping[type, str]) -> None:
    """Adds the block of each engine to a `model`."""
    definition["additionalProperties"] = False
    definition["properties"]["engine"]["anyOf"][0]["enum"] = list(engine_types())
    for name, each in engine_types().items():
        if name not in model.model_fields:
            block = {"$ref": _REF + named[each.options], "description": each.about}
            definition["properties"][name] = block


def _root(defs: Schema, named: Mapping[type, str], specs: Mapping[str, str]) -> Schema:
    template, node = defs.pop(named[Template]), defs[named[Node]]
    runs: Schema = {
        "schedule": {"$ref": _REF + named[Schedule]},
        **defs[named[Partitioned]]["properties"],
    }
    for spec in (defs[each] for each in specs.values()):
        spec["required"] = [key for key in spec["required"] if key != "taskType"]
        spec["properties"] |= runs
    defs["NodeSpec"] = _any_spec([defs[f"{each}{_PARTIAL}"] for each in specs.values()])
    defs["NodeSpec"]["allOf"] = [_keys_of(name, defs[each]) for name, each in specs.items()]
    node["properties"]["spec"] = {"$ref": f"{_REF}NodeSpec", "description": "Over the base."}
    defs["Spec"] = copy.deepcopy(defs["NodeSpec"])
    del defs["Spec"]["allOf"]
    nodes: Schema = {"type": "array", "minItems": 1, "items": {"$ref": _REF + named[Node]}}
    defs["Spec"]["properties"] |= {
        **runs,
        "stages": {**nodes, "description": "Tasks that run one after the other."},
        "graph": {
            "type": "object",
            "description": "Tasks that run as their `dependsOn` allows.",
            "properties": {"nodes": nodes},
            "required": ["nodes"],
            "additionalProperties": False,
        },
    }
    defs["Spec"]["not"] = {"required": ["stages", "graph"]}
    properties = template["properties"]
    properties["spec"] = {"$ref": f"{_REF}Spec", "description": properties["spec"]["description"]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mloc template",
        **{key: value for key, value in template.items() if key != "title"},
        "allOf": [_one_task(name, each) for name, each in specs.items()],
        "$defs": {
            name: defs[name] for name in sorted(_reachable(defs, specs.values(), properties))
        },
    }


def _any_spec(specs: list[Schema]) -> Schema:
    """Returns a spec with the properties of all task types, none of them required."""
    choices: dict[str, list[Schema]] = {}
    for spec in specs:
        for key, schema in spec["properties"].items():
            known = choices.setdefault(key, [])
            if schema not in known:
                known.append(schema)
    choices["taskType"] = [{"enum": list(task_types()), "description": "What a task does."}]
    return {
        "type": "object",
        "properties": {
            key: schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
            for key, schemas in choices.items()
        },
        "additionalProperties": False,
    }


def _keys_of(task_type: str, spec: Schema) -> Schema:
    keys = [key for key in spec["properties"] if key not in ("schedule", "partitions")]
    return {
        "if": {"properties": {"taskType": {"const": task_type}}, "required": ["taskType"]},
        "then": {"propertyNames": {"enum": keys}},
    }


def _one_task(task_type: str, definition: str) -> Schema:
    """Returns: a template without stages and nodes is wholly a spec of its task type."""
    named: Schema = {
        "properties": {
            "spec": {"properties": {"taskType": {"const": task_type}}, "required": ["taskType"]}
        }
    }
    implied_by = {kind: [each.name for each in types_of_kind(kind)] for kind in all_kinds()}
    kinds = [kind for kind, names in implied_by.items() if names == [task_type]]
    implied: Schema = {
        "properties": {
            "kind": {"enum": kinds},
            "spec": {"not": {"required": ["taskType"]}},
        }
    }
    single: Schema = {
        "properties": {
            "spec": {"not": {"anyOf": [{"required": ["stages"]}, {"required": ["graph"]}]}}
        }
    }
    return {
        "if": {"allOf": [single, {"anyOf": [named, implied]}], "required": ["kind", "spec"]},
        "then": {"properties": {"spec": {"$ref": f"{_REF}{definition}"}}},
    }


def _allow_references(definition: Schema) -> None:
    """Lets numbers and truth values be given as a reference, which is a string."""
    for key, schema in definition.get("properties", {}).items():
        if schema.get("type") in _NUMBERS:
            outer = {
                name: schema[name] for name in ("description", "default", "title") if name in schema
            }
            inner = {name: value for name, value in schema.items() if name not in outer}
            definition["properties"][key] = {
                **outer,
                "anyOf": [inner, {"$ref": f"{_REF}Reference"}],
            }
        elif {each.get("type") for each in schema.get("anyOf", [])} & {*_NUMBERS, "string"} in (
            {"integer"},
            {"number"},
            {"boolean"},
        ):
            schema["anyOf"].append({"$ref": f"{_REF}Reference"})


def _add_spelling(defs: Schema, specs: Collection[str], spelling: Spelling) -> None:
    for each in specs:
        for definition in _descend(defs, defs[each], spelling.old[:-1]):
            definition["properties"].setdefault(spelling.old[-1], _old(defs, specs, spelling))


def _descend(defs: Schema, definition: Schema, path: tuple[str, ...]) -> list[Schema]:
    """Returns the blocks at a path; a block that holds nothing but old keys is made."""
    if not path:
        return [definition]
    properties = definition["properties"]
    if path == ("config",):
        properties.setdefault(
            "config",
            {
                "type": "object",
                "deprecated": True,
                "description": "Where old templates had model options.",
                "properties": {},
                "additionalProperties": False,
            },
        )
        return [properties["config"]]
    if path[0] not in properties:
        return []
    names = _refs(properties[path[0]])
    return [home for name in names for home in _descend(defs, defs[name], path[1:])]


def _old(defs: Schema, specs: Collection[str], spelling: Spelling) -> Schema:
    if spelling.new is None:
        return {"deprecated": True, "description": f"Has no effect: {spelling.why}."}
    now = ".".join(spelling.new)
    if spelling.silent:
        return {**_new(defs, specs, spelling), "description": f"The same as `{now}`."}
    return {
        **_new(defs, specs, spelling),
        "deprecated": True,
        "description": f"Called `{now}` today.",
    }


def _new(defs: Schema, specs: Collection[str], spelling: Spelling) -> Schema:
    """Returns the schema of the key that an old one stands for."""
    for each in specs:
        for home in _descend(defs, defs[each], (spelling.new or ())[:-1]):
            schema: Schema = home["properties"][(spelling.new or ("",))[-1]]
            return {key: value for key, value in schema.items() if key not in ("default", "title")}
    return {}


def _refs(schema: Any) -> list[str]:
    """Returns the names of the definitions that a schema refers to, in order."""
    if isinstance(schema, list):
        return [name for each in schema for name in _refs(each)]  # pyright: ignore
    if not isinstance(schema, dict):
        return []
    found: list[str] = []
    for key, value in schema.items():  # pyright: ignore
        found += [str(value).removeprefix(_REF)] if key == "$ref" else _refs(value)  # pyright: ignore
    return found


def _partial(schema: Any) -> Any:
    """Returns a schema where nothing is required, as for what is laid over a base."""
    if isinstance(schema, list):
        return [_partial(each) for each in schema]  # pyright: ignore
    if not isinstance(schema, dict):
        return schema
    changed: Schema = {}
    for key, value in schema.items():  # pyright: ignore
        if key == "$ref" and value != f"{_REF}Reference":
            changed[key] = f"{value}{_PARTIAL}"
        elif key == "oneOf":
            changed["anyOf"] = _partial(value)
        elif key == "properties":
            changed[key] = {name: _partial(each) for name, each in value.items()}  # pyright: ignore
        elif key not in ("required", "discriminator"):
            changed[key] = _partial(value)
    return changed


def _reachable(defs: Schema, specs: Collection[str], start: Schema) -> set[str]:
    waiting = [*_refs(start), *specs]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += _refs(defs[name])
    return seen
