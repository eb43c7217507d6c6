"""One template of many: a copy of its tasks for each combination of values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from pydantic import JsonValue

from mloc_dagster.compile.compiled import CompiledTask
from mloc_dagster.compile.compiler import compile_document, compile_mapping
from mloc_dagster.compile.loader import Document, parse_documents
from mloc_dagster.compile.overrides import apply_sets
from mloc_dagster.errors import InputError, TemplateError

_NO_NAME = re.compile(r"[^A-Za-z0-9]+")
_REFERENCE = re.compile(r"(?<!\$)\$\{(?P<node>[A-Za-z0-9._-]+?)(?=\.result\b)")


@dataclass(frozen=True, slots=True)
class Axis:
    """A value that is varied.

    Attributes:
        path: As `--set` takes it.
        values: What it is given, as JSON.
    """

    path: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SweptTask:
    """A task of a sweep.

    Attributes:
        node: Its name in the sweep.
        origin: Its name in the template.
        values: What its axes are given, by path.
    """

    node: str
    origin: str
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Sweep:
    """A template with every combination.

    Attributes:
        document: The template.
        tasks: Its tasks.
    """

    document: Mapping[str, JsonValue]
    tasks: tuple[SweptTask, ...]


def parse_axis(text: str) -> Axis:
    """Reads `path=value,value`; brackets and quotes keep what they enclose together.

    Raises:
        InputError: If it is no axis.
    """
    path, equals, values = text.partition("=")
    if not equals or not path.strip():
        raise InputError(
            f"--grid {text}: expected PATH=VALUE,VALUE…, such as spec.inference.temperature=0,0.5"
        )
    try:
        (document,) = parse_documents(f"values: [{values}]\n", f"--grid {text}")
    except TemplateError as error:
        raise InputError(f"--grid {text}: {values!r} are no values in YAML") from error
    found = document.root.fields["values"].items
    if not found:
        raise InputError(f"--grid {text}: name at least one value")
    values = [json.dumps(each.plain(), ensure_ascii=False) for each in found]
    if len(set(values)) < len(values):
        raise InputError(f"--grid {text}: a value stands there twice")
    return Axis(path.strip(), tuple(values))


def sweep(document: Document, axes: Sequence[Axis]) -> Sweep:
    """Returns a template whose tasks are those of another, once for each combination of values.

    Each has a name of its own, and reads the results of its own combination. Nothing is shared
    between combinations but what workers keep: their models stay loaded.

    Args:
        document: The template.
        axes: What is varied; the last one changes fastest.

    Raises:
        TemplateError: If the template is wrong with one of the values.
        InputError: If a path is given twice.
    """
    paths = [each.path for each in axes]
    if len(set(paths)) < len(paths):
        raise InputError(f"--grid {next(each for each in paths if paths.count(each) > 1)}: twice")
    nodes: list[JsonValue] = []
    tasks: list[SweptTask] = []
    first = compile_document(document)
    for combination in product(*(each.values for each in axes)):
        values = dict(zip(paths, combination, strict=True))
        compiled = compile_document(apply_sets(document, [f"{k}={v}" for k, v in values.items()]))
        names = {
            each.task.name: _name(each.task.name if len(compiled.tasks) > 1 else "", values)
            for each in compiled.tasks
        }
        nodes += [_node(each, names) for each in compiled.tasks]
        tasks += [SweptTask(names[origin], origin, values) for origin in names]
    metadata: dict[str, JsonValue] = {
        **first.metadata.model_dump(mode="json", by_alias=True, exclude_defaults=True),
        "name": f"{first.metadata.name}-sweep",
    }
    made: dict[str, JsonValue] = {
        "apiVersion": first.document["apiVersion"],
        "kind": first.kind,
        "metadata": metadata,
        "spec": {"taskType": first.tasks[0].task.spec.task_type, "graph": {"nodes": nodes}},
    }
    compile_mapping(made)
    return Sweep(made, tuple(tasks))


def _name(node: str, values: Mapping[str, str]) -> str:
    parts = [
        f"{path.rpartition('.')[2]}-{_NO_NAME.sub('_', value).strip('_')}"
        for path, value in values.items()
    ]
    return "-".join([node, *parts] if node else parts)


def _node(compiled: CompiledTask, names: Mapping[str, str]) -> JsonValue:
    node: dict[str, JsonValue] = {
        "name": names[compiled.task.name],
        "spec": _renamed(dict(compiled.mapping), names),
    }
    if compiled.task.depends_on:
        node["dependsOn"] = [names[each] for each in compiled.task.depends_on]
    return node


def _renamed(value: JsonValue, names: Mapping[str, str], key: str = "") -> JsonValue:
    """Returns a part of a spec that refers to other nodes by their new names."""
    if isinstance(value, dict):
        return {name: _renamed(each, names, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if not isinstance(value, str):
        return value
    if key == "node":
        return names.get(value, value)
    if key == "expr":
        node, dot, rest = value.partition(".result")
        return f"{names.get(node, node)}{dot}{rest}"
    return _REFERENCE.sub(lambda found: f"${{{names.get(found['node'], found['node'])}", value)
