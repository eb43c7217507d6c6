"""The shipped JSON Schema is what events look like on the wire."""

from __future__ import annotations

import importlib.util
import json
import re
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.events.model import (
    Event,
    Payload,
    ShardPlace,
    SloMiss,
    TaskEvent,
    TaskEventType,
    WorkerEvent,
    WorkerEventType,
    WorkerPayload,
    WorkerState,
)

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def shipped() -> str:
    return (resources.files("mloc_dagster.events") / "events.schema.json").read_text()


@pytest.fixture(scope="module")
def validator(shipped: str) -> Any:
    schema = json.loads(shipped)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_it_is_up_to_date(shipped: str) -> None:
    path = ROOT / "scripts" / "build_event_schema.py"
    spec = importlib.util.spec_from_file_location("build_event_schema", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert shipped == script.render_schema(), "run scripts/build_event_schema.py"


@pytest.mark.parametrize(
    "event",
    [
        *(TaskEvent(type=each, task_id="t", run_id="r") for each in TaskEventType),
        *(
            WorkerEvent(type=each, worker_id="w", status=WorkerState.IDLE)
            for each in WorkerEventType
        ),
        TaskEvent(
            type=TaskEventType.SHARD_FAILED,
            task_id="t",
            run_id="r",
            worker_id="w",
            shard=ShardPlace(index=1, total=2),
            error="no",
            payload=Payload(losses=1, reason="why", slo=SloMiss(seconds=1, elapsed_s=2, late_s=1)),
        ),
        WorkerEvent(
            type=WorkerEventType.LOST,
            worker_id="w",
            status=WorkerState.LOST,
            payload=WorkerPayload(since=datetime(2026, 1, 1, tzinfo=UTC), reason="silent"),
        ),
    ],
    ids=lambda event: event.type,
)
def test_every_event_is_valid_and_comes_back(event: Event, validator: Any) -> None:
    said = event.model_dump_json()
    assert [error.message for error in validator.iter_errors(json.loads(said))] == []
    assert type(event).model_validate_json(said) == event


def test_an_event_without_its_id_is_not_valid(validator: Any) -> None:
    said = json.loads(TaskEvent(type="TASK_STARTED", task_id="t", run_id="r").model_dump_json())
    del said["event_id"]
    assert list(validator.iter_errors(said))


def test_the_examples_of_the_docs_are_events(validator: Any) -> None:
    text = (ROOT / "docs" / "events.md").read_text()
    examples = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    assert examples
    for example in examples:
        assert [error.message for error in validator.iter_errors(json.loads(example))] == []
        said = TaskEvent.model_validate_json(example).model_dump(mode="json")
        assert said == json.loads(example)
