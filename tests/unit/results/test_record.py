from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest

from mloc_dagster.errors import InputError, UnknownNameError
from mloc_dagster.results.record import TaskRecord, read_record, write_record
from mloc_dagster.results.store import ResultStore, open_store


@pytest.fixture
def store() -> ResultStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def a_record(task_id: str) -> TaskRecord:
    return TaskRecord(
        task_id=task_id,
        workflow_id="w",
        run_id="r",
        template={"spec": {"taskType": "echo", "x": "${TOKEN}"}},
        template_name="demo",
        node="draft",
        task_type="echo",
        spec={"taskType": "echo"},
        upstream={"facts": "w-facts"},
        submitted_at=datetime(2026, 1, 1, tzinfo=UTC),
        mloc_version="1",
    )


def test_a_record_reads_back(store: ResultStore) -> None:
    record = a_record("w-draft")
    write_record(store.task("w-draft"), record)
    assert read_record(store.task("w-draft")) == record


def test_an_unknown_task_names_the_nearest_one(store: ResultStore) -> None:
    write_record(store.task("echo-1234"), a_record("echo-1234"))
    with pytest.raises(UnknownNameError, match="did you mean 'echo-1234'"):
        read_record(store.task("ehco-1234"))


def test_a_damaged_record_is_named(store: ResultStore) -> None:
    store.task("t").write_bytes("task.json", b"{}")
    with pytest.raises(InputError, match=r"t/task\.json is no task record"):
        read_record(store.task("t"))
