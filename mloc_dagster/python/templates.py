"""What stands for a template in Python: a file, a name of the library, text, a mapping."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import JsonValue

from mloc_dagster.compile import (
    CompiledTemplate,
    Document,
    Position,
    errors_of,
    load_documents,
    parse_documents,
    tree_of,
    with_rows,
)
from mloc_dagster.data import RowsFile, look_at_data
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.local_run import check_partitions, compile_changed, template_path
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.schema import find_task_type

SHOWN = "template"
"""What a template is called in messages that comes from no file."""


@runtime_checkable
class TemplateBuilder(Protocol):
    """What builds a template."""

    def to_template(self) -> Mapping[str, JsonValue]:
        """Returns the template as a mapping."""
        ...


Template = str | os.PathLike[str] | Mapping[str, JsonValue] | TemplateBuilder
"""A template: a `Path` or the name of a file, the name of a library template such as `echo`, YAML
(a text of several lines), a mapping, or an object with a method `to_template`."""

Changes = Mapping[str, Any]
"""Values by their path in the template: `{"spec.inference.temperature": 0}`."""


def template(
    task_type: str, *, name: str | None = None, model: str | None = None, **spec: Any
) -> dict[str, JsonValue]:
    """Builds a template of one task.

    Args:
        task_type: What it does, such as `inference`.
        name: What it is called; by default as its task type.
        model: The model: one that ships, a folder, or an id on the Hugging Face hub. Give the block
            itself as `spec` keyword where more is to be said.
        spec: The rest of its `spec`: `data=…`, `inference=…`, `evaluation=…`.

    Raises:
        UnknownNameError: If there is no such task type.
    """
    found = find_task_type(task_type)
    fields = {"taskType": task_type, **spec}
    if model is not None:
        fields["model"] = {"source": {"type": _source_type(model), "identifier": model}}
    return {
        "apiVersion": "mloc/v1",
        **({"kind": found.kinds[0]} if found.kinds else {}),
        "metadata": {"name": name or task_type},
        "spec": plain(fields, "spec"),
    }


def _source_type(model: str) -> str:
    if model in BUILTIN_MODELS:
        return "builtin"
    return "local" if Path(model).is_dir() else "huggingface"


def documents(given: Template) -> list[Document]:
    """Returns the documents of a template, each value with its place where there is one.

    Raises:
        TemplateError: If it is none; carries every finding.
        InputError: If it is nothing that stands for one.
    """
    if isinstance(given, str) and "\n" in given:
        return parse_documents(given, SHOWN)
    if isinstance(given, str | os.PathLike):
        return load_documents(template_path(os.fspath(given)))
    if isinstance(given, TemplateBuilder):
        given = given.to_template()
    if isinstance(given, Mapping):
        value = plain(dict(given), SHOWN)
        return [Document(SHOWN, tree_of(value, Position(SHOWN)))]
    raise InputError(
        "a template is a path, a name of the library, YAML, a mapping, or has a method to_template;"
        f" got {type(given).__name__}"
    )


def compile_template(
    given: Template,
    changes: Changes | None,
    rows: RowsFile | None,
    partition: str | None = None,
) -> list[CompiledTemplate]:
    """Compiles a template.

    Args:
        given: The template.
        changes: Values to replace.
        rows: A file with rows that its first task reads instead of its own.
        partition: The partition that it computes.

    Raises:
        TemplateError: If any of it is wrong; carries every finding.
    """
    found = documents(given)
    if rows is not None:
        found = [with_rows(each, str(rows.path)) for each in found]
    values = {path: plain(each, f"set {path}") for path, each in (changes or {}).items()}
    return compile_changed(found, values, partition)


def one_template(
    given: Template,
    changes: Changes | None,
    rows: RowsFile | None,
    partition: str | None = None,
) -> CompiledTemplate:
    """Compiles the one template that is given, and looks at the files that it names.

    Raises:
        TemplateError: If anything is wrong; carries every finding.
        InputError: If it is a file of several, or has no such partition.
    """
    templates = compile_template(given, changes, rows, partition)
    if len(templates) > 1:
        names = ", ".join(repr(each.metadata.name) for each in templates)
        raise InputError(
            f"{given} holds {len(templates)} templates ({names}), and one is run at a time: "
            "give each as a file, text or mapping of its own"
        )
    check_partitions(templates)
    templates[0].check_built()
    look(templates)
    return templates[0]


def look(templates: Sequence[CompiledTemplate]) -> None:
    """Looks at the files that templates name.

    Raises:
        TemplateError: If one is missing or is not as the template means.
    """
    if errors := errors_of(look_at_data(templates)):
        raise TemplateError(errors)


def plain(value: object, shown: str) -> Any:
    """Returns a value as a template can hold it.

    Args:
        value: Texts, numbers, lists and mappings; paths, and numbers of numpy.
        shown: What it is called, for messages.

    Raises:
        InputError: If it, or something in it, is none of these.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(each, f"{shown}.{key}") for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, f"{shown}[{place}]") for place, each in enumerate(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    item = getattr(value, "item", None)  # a number of numpy or torch
    if callable(item) and isinstance(number := item(), str | bool | int | float):
        return number
    raise InputError(
        f"{shown} is a {type(value).__name__}: a template holds texts, numbers, lists and mappings"
    )
