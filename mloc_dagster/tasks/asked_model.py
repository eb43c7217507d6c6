"""Which model is meant by a name that a request gives, and how it is loaded and asked.

A name is that of a model that ships, the id of a task, a folder, the name of a template of the
library, or an id of the hub. A training's id means what it has trained, so that it can be tried at
once; another task's id, or a template, means the model that it asks, with its options and hardware.
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.compile import CompiledTemplate, compile_file, references_in
from mloc_dagster.data import request_rows
from mloc_dagster.errors import InputError, UnknownNameError, nearest_hint
from mloc_dagster.executors import RowOptions, open_task, request_block
from mloc_dagster.library import library_file, library_files
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.results import RECORD_NAME, InputRow, check_task_id, open_store, read_training
from mloc_dagster.schema import (
    FINAL_LORA,
    ModelSpec,
    RewardSpec,
    RowSpec,
    TaskSpec,
    TrainingSpec,
    certain_engine,
    find_task_type,
    scalars,
    secrets_in,
)

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")

type Fields = dict[str, JsonValue]
"""Some fields of a task's spec, or all of a block."""


def asked_spec(name: str, *, vectors: bool = False) -> Fields:
    """Returns what a spec says of a model, its options and its hardware; `taskType` included.

    Args:
        name: What a request calls the model, or a folder with one.
        vectors: Whether vectors are wanted, not text.

    Raises:
        UnknownNameError: If no model is called so.
        InputError: If it cannot be asked, or not for this; says why.
    """
    fields = _fields(name, "embedding" if vectors else "inference")
    found = find_task_type(str(fields["taskType"]))
    if found.spec.leaves_vectors is not vectors:  # type: ignore[attr-defined]
        gives, wanted = ("text", "vectors") if vectors else ("vectors", "text")
        raise InputError(f"{name} is a task of the type {found.name}: {gives}, no {wanted}")
    return fields


def asked_template(name: str, *, vectors: bool = False) -> Fields:
    """Returns a template with one task that asks a model; see `asked_spec`."""
    fields = asked_spec(name, vectors=vectors)
    return {
        "apiVersion": "mloc/v1",
        "kind": find_task_type(str(fields["taskType"])).kinds[0],
        "metadata": {"name": "call"},
        "spec": {**fields, "data": {"type": "list", "items": ["-"]}},
    }


def call_rows(endpoint: str, body: Fields, spec: RowSpec) -> list[InputRow]:
    """Returns what a request asks as the rows of a task, as the same line of a batch file would.

    Args:
        endpoint: Such as `/v1/chat/completions`.
        body: The request without `model` and `stream`.
        spec: The task that answers.

    Raises:
        InputError: If it cannot be answered.
    """
    found = request_rows(endpoint, "call", body, request_block(spec))
    options = (
        RowOptions(spec.row_block, certain_engine(spec)) if isinstance(spec, ModelSpec) else None
    )
    rows: list[InputRow] = []
    for index, each in enumerate(found):
        if each.error is not None:
            raise InputError(each.error)
        row = InputRow(
            index,
            each.prompt,
            options=each.options,
            adapter=each.adapter,
            verbatim=each.verbatim,
            encoding=each.encoding,
        )
        try:
            if options is not None:
                options.of(row)
        except ValueError as error:
            raise InputError(str(error)) from None
        rows.append(row)
    return rows


def _fields(name: str, task_type: str) -> Fields:
    if name in BUILTIN_MODELS:
        return {"taskType": task_type, "model": _model("builtin", name)}
    if _is_task(name):
        return _fields_of_task(name, task_type)
    if _is_place(name):
        return {"taskType": task_type, "model": _model("local", name)}
    files = library_files()
    short = [each.rpartition("/")[2] for each in files]
    if name in files or name in short:
        return _fields_of_template(name, compile_file(library_file(name)))
    known = [*BUILTIN_MODELS, *files, *short]
    mistyped = "/" not in name and "did you mean" in nearest_hint(name, known)
    if mistyped or not _HUB_ID.fullmatch(name):
        raise UnknownNameError("model", name, known)
    return {"taskType": task_type, "model": _model("huggingface", name)}


def _is_task(name: str) -> bool:
    try:
        check_task_id(name)
    except InputError:
        return False
    return open_store().task(name).exists(RECORD_NAME)


def _is_place(name: str) -> bool:
    try:
        return Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).is_dir()
    except (OSError, ValueError):  # too long for a path, or with a NUL
        return False


def _fields_of_task(task_id: str, task_type: str) -> Fields:
    spec = open_task(task_id).task.spec
    if isinstance(spec, TrainingSpec):
        return {"taskType": task_type, "model": _trained(task_id, spec)}
    return _fields_of(task_id, spec)


def _fields_of_template(name: str, documents: list[CompiledTemplate]) -> Fields:
    specs = [each.task.spec for document in documents for each in document.tasks]
    asked = [each for each in specs if isinstance(each, RowSpec)]
    if len(asked) != 1:
        raise InputError(
            f"the template {name} has {len(asked)} tasks that ask a model, and one is needed: name"
            " the model, or a task's id"
        )
    fields = _fields_of(name, asked[0])
    texts = (each for _, each in scalars(fields) if isinstance(each, str))
    if any(True for each in texts for _ in references_in(each)):
        raise InputError(f"the template {name} asks what it trains: name the task that has it")
    return fields


def _fields_of(name: str, spec: TaskSpec) -> Fields:
    if not isinstance(spec, RowSpec):
        raise InputError(f"{name} is a task of the type {spec.task_type}, which asks no model")
    fields: Fields = {
        "taskType": spec.task_type,
        "enforce_cpu": spec.enforce_cpu,
        "resources": {"hardware": spec.resources.hardware.model_dump(mode="json")},
    }
    given = spec.model_dump(mode="json", exclude_unset=True)
    kept = ["model"] if isinstance(spec, ModelSpec) else []
    if isinstance(spec, ModelSpec) and any(secrets_in(spec.model)):
        # A call goes to workers over Redis, and is read by whoever may read there.
        raise InputError(
            f"{name} asks an endpoint with a key of its own, which calls do not take along: list "
            "the endpoint with its key in MLOC_API_ENDPOINTS, and leave api_key out"
        )
    return fields | {key: given[key] for key in (*kept, spec.block_name) if key in given}


def _trained(task_id: str, spec: TrainingSpec) -> Fields:
    """Returns what a training has left, as a model.

    Raises:
        IncompleteResultsError: If it is not done.
    """
    folder = open_store().task(task_id)
    final = read_training(folder).final
    if isinstance(spec, RewardSpec):
        raise InputError(f"{task_id} has trained a reward model, which gives scores and no text")
    if not final:
        raise InputError(f"{task_id} has kept no weights (training.save_model is false)")
    weights = f"{folder.url}/{final}"
    if final != FINAL_LORA:
        return _model("local", weights)
    given = spec.model.model_dump(mode="json", exclude_unset=True)
    adapters = [*given.get("adapters", ()), {"path": weights}]
    return {**_base(task_id, spec, given["source"]), "adapters": adapters}


def _base(task_id: str, spec: TrainingSpec, source: JsonValue) -> Fields:
    """Returns the model that an adapter was trained for."""
    load = None if spec.checkpoint is None else spec.checkpoint.load
    if load is None:
        return {"source": source}
    if load.task_id is not None and load.file is None:
        return _trained(load.task_id, open_task(load.task_id).training_spec)
    if load.path is None:
        raise InputError(
            f"{task_id} is an adapter for weights that came as an archive: ask it in a template,"
            " with model.adapters"
        )
    return _model("local", load.path)


def _model(kind: str, identifier: str) -> Fields:
    return {"source": {"type": kind, "identifier": identifier}}
