"""The template library of the fleet's benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

CHAT = "chat"
"""The template with a model."""


def write_echo(
    library: Path, name: str, *, rows: int, shards: int | None = None, delay_s: float = 0.0
) -> str:
    """Writes an echo template; returns its name, which is its job's, too.

    Args:
        library: The folder of templates.
        name: Letters and digits.
        rows: Its rows, in a file next to the template.
        shards: By default a shard for each row.
        delay_s: Seconds that each row sleeps.
    """
    data = library / f"{name}.jsonl"
    lines = (json.dumps({"text": f"row {index}"}) for index in range(rows))
    data.write_text("\n".join(lines) + "\n")
    spec = {
        "taskType": "echo",
        "parallel": {"max_shards": shards or rows},
        "data": {"type": "dataset", "url": str(data), "column": "text"},
        "echo": {"delay_s": delay_s},
    }
    return _write(library, name, "EchoTask", spec)


def write_greeting(library: Path, workers: int) -> str:
    """Writes a template that gives every worker its first shard; returns its name.

    A shard is slow enough that no worker takes two while another one is idle.
    """
    return write_echo(library, f"greet{workers}", rows=workers, delay_s=1.0)


def write_chat(library: Path) -> str:
    """Writes a template that asks the model that ships one question; returns its name."""
    spec = {
        "taskType": "inference",
        "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
        "data": {"type": "list", "items": ["How many apples are left?"]},
        "inference": {"temperature": 0, "max_tokens": 16},
    }
    return _write(library, CHAT, "InferenceTask", spec)


def _write(library: Path, name: str, kind: str, spec: dict[str, object]) -> str:
    document = {"apiVersion": "mloc/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    (library / f"{name}.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return name
