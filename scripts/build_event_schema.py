"""Renders mloc_dagster/events/events.schema.json from the models of events.

Run it after each change to `mloc_dagster/events/model.py` or `payloads.py`:
`python scripts/build_event_schema.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mloc_dagster.events import TaskEvent, WorkerEvent

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "mloc_dagster" / "events" / "events.schema.json"


def render_schema() -> str:
    """Returns the JSON Schema: an event is one of the two, as they are on the wire."""
    models = [(TaskEvent, "serialization"), (WorkerEvent, "serialization")]
    _, schema = models_json_schema(
        models,  # type: ignore[arg-type]
        title="Events of mloc",
        description="What goes over the channels tasks.events (TaskEvent) and workers.events"
        " (WorkerEvent), and into the streams of the same names + .log.",
    )
    for model in _models(TaskEvent, WorkerEvent):
        # What is never left out is always there, also where parsing has a default for it.
        definition = schema["$defs"][model.__name__]
        optional = {name for name, field in model.model_fields.items() if field.exclude_if}
        definition["required"] = [each for each in definition["properties"] if each not in optional]
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "anyOf": [{"$ref": f"#/$defs/{each.__name__}"} for each in (TaskEvent, WorkerEvent)],
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _models(*models: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for model in models:
        yield model
        for field in model.model_fields.values():
            for each in (field.annotation, *get_args(field.annotation)):
                if isinstance(each, type) and issubclass(each, BaseModel):
                    yield from _models(each)


def main() -> None:
    """Writes the file."""
    SCHEMA.write_text(render_schema(), encoding="utf-8")
    print(f"wrote {SCHEMA.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
