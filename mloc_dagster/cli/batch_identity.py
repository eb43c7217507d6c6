"""Which task a command of `mloc batch` means: equal requests, model and options, the same one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import JsonValue

from mloc_dagster.compile.compiler import CompiledTemplate
from mloc_dagster.data.openai_batch import BatchFile
from mloc_dagster.models import BUILTIN_MODELS


def model_source(model: str) -> dict[str, JsonValue]:
    """Returns what a template says of a model: a built-in one, a folder, or one of the hub."""
    if model in BUILTIN_MODELS:
        return {"type": "builtin", "identifier": model}
    path = Path(model).expanduser()
    if path.is_dir() or path.is_absolute() or model.startswith("."):
        return {"type": "local", "identifier": str(path.resolve())}
    return {"type": "huggingface", "identifier": model}


def batch_task_id(compiled: CompiledTemplate, found: BatchFile, model: str) -> str:
    """Returns the id of the task that answers these requests, with this model and these options."""
    spec = compiled.tasks[0].task.spec.model_dump(mode="json", exclude={"data": {"url"}})
    known = [found.sha256, spec, _stamps(Path(model).expanduser())]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return f"batch-{digest[:20]}"


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """Returns what changes when somebody trains a local model again."""
    if not folder.is_dir():
        return []
    files = sorted(each for each in folder.iterdir() if each.is_file())
    return [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
