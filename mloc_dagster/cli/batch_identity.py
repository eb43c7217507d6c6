"""Which task a command of `mloc batch` means: equal requests, model and options, the same one."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.compile.compiler import CompiledTemplate
from mloc_dagster.data.openai_batch import BatchFile
from mloc_dagster.errors import InputError, TerminalError
from mloc_dagster.models import BUILTIN_MODELS
from mloc_dagster.schema.canonical import canonical_json
from mloc_dagster.schema.task import ModelSpec


def model_source(model: str) -> dict[str, JsonValue]:
    """Returns what a template says of a model: a built-in one, a folder, or one of the hub."""
    if model in BUILTIN_MODELS:
        return {"type": "builtin", "identifier": model}
    path = Path(model).expanduser()
    if path.is_dir() or path.is_absolute() or model.startswith("."):
        return {"type": "local", "identifier": str(path.resolve())}
    return {"type": "huggingface", "identifier": model}


def batch_task_id(compiled: CompiledTemplate, found: BatchFile) -> str:
    """Returns the id of the task that answers these requests, with this model and these options.

    What lies on this disk counts with every byte: a model or an adapter that was trained again in
    its folder is another one.

    Raises:
        InputError: If there is no such model.
    """
    from mloc_dagster.executors.reuse_identity import file_contents

    spec = compiled.tasks[0].task.spec
    try:
        contents = file_contents(spec) if isinstance(spec, ModelSpec) else []
    except TerminalError as error:
        raise InputError(str(error)) from error
    known: list[JsonValue] = [
        found.sha256,
        spec.model_dump(mode="json", exclude={"data": {"url"}}),
        [each.hex() for each in contents],
    ]
    digest = hashlib.sha256(canonical_json(known).encode()).hexdigest()
    return f"batch-{digest[:20]}"
