"""`mloc show` of a training: before, while and after it runs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from mloc_dagster.cli.display.task_lines import task_lines
from mloc_dagster.compile import compile_mapping
from mloc_dagster.events import (
    LastProgress,
    Payload,
    ShardPlace,
    TaskEvent,
    TaskEventType,
    TrainingFigures,
    last_counts,
    last_training_progress,
    open_redis,
    send,
)
from mloc_dagster.executors.task_start import task_record
from mloc_dagster.results import TrainingSummary, open_store, write_record, write_training
from mloc_dagster.tasks import training_status
from mloc_dagster.wire import TaskDetail, TaskState, TrainingView

NOW = datetime.now(UTC).replace(microsecond=0)
LATER = NOW + timedelta(seconds=5)
METRICS = {"loss": 0.75, "learning_rate": 1e-4, "tokens_per_s": 1234.4}


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with open_redis(redis_url) as opened:
        yield opened


def submitted(task_type: str = "sft", state: TaskState = TaskState.RUNNING) -> TaskDetail:
    """A task whose record is on the store."""
    task_id = str(uuid.uuid4())
    trains = task_type == "sft"
    data = {"rows": [{"text": "a"}]} if trains else {"type": "list", "items": ["a"]}
    model = {"source": {"type": "builtin", "identifier": "tiny-chat"}}
    spec: dict[str, Any] = {"taskType": task_type, "data": data, "model": model}
    template = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "TrainingTask" if trains else "InferenceTask",
            "metadata": {"name": "taught"},
            "spec": spec,
        }
    )
    folder = open_store().task(task_id)
    write_record(folder, task_record(task_id, template, template.tasks[0], task_id, "run", {}))
    return TaskDetail(
        task_id=task_id,
        node="taught",
        template="taught",
        status=state,
        workflow_id=task_id,
        task_type=task_type,
        run_id="run",
        runs=1,
        submitted_at=NOW,
        rows=192,
        rows_finished=0,
        folder=folder.url,
    )


def progress(task_id: str, step: int, *, at: datetime = NOW) -> TaskEvent:
    figures = TrainingFigures(step=step, steps=48, steps_per_s=0.5, metrics=METRICS)
    return happened(task_id, TaskEventType.TASK_PROGRESS, at).model_copy(
        update={"payload": Payload(training=figures, eta_s=(48 - step) / 0.5)}
    )


def happened(task_id: str, kind: TaskEventType, at: datetime) -> TaskEvent:
    place = ShardPlace(index=0, total=1)
    return TaskEvent(type=kind, task_id=task_id, run_id="run", node="taught", shard=place, ts=at)


def training_of(status: TaskDetail, news: LastProgress | None) -> TrainingView | None:
    runs = status.status is TaskState.RUNNING
    return training_status(
        status.task_id, status.submitted_at, lambda *_: news, runs=runs, now=LATER
    )


def shown(status: TaskDetail, news: LastProgress | None) -> dict[str, str]:
    training = training_of(status, news)
    return dict(task_lines(status.model_copy(update={"training": training})))


def test_a_running_training_says_how_far_it_is() -> None:
    status = submitted()
    lines = shown(status, LastProgress(progress(status.task_id, 24), superseded=False))
    assert lines["steps"] == "24 of 48, about 43.0 s left"  # told 5 seconds ago
    assert lines["training"] == "loss 0.75, learning rate 0.0001, 1,234 tokens/s, 0.5 steps/s"
    assert lines["rows"] == "192"


def test_a_training_that_has_not_begun_has_done_no_step() -> None:
    assert shown(submitted(), None)["steps"] == "0"


def test_steps_before_a_restart_count_no_more() -> None:
    status = submitted()
    lines = shown(status, LastProgress(progress(status.task_id, 24), superseded=True))
    assert lines["steps"] == "0 of 48"
    assert "training" not in lines


def test_a_stopped_training_has_no_time_left() -> None:
    status = submitted(state=TaskState.CANCELLED)
    lines = shown(status, LastProgress(progress(status.task_id, 24), superseded=False))
    assert lines["steps"] == "24 of 48"
    assert "steps/s" not in lines["training"]


def test_a_finished_training_says_what_it_came_to() -> None:
    status = submitted(state=TaskState.DONE)
    summary = TrainingSummary(
        task_id=status.task_id,
        task_type="sft",
        model="tiny-chat",
        model_revision="",
        source="rows",
        data_version="d" * 64,
        dataset_size=192,
        bad_rows=0,
        steps=48,
        seconds=18.8,
        metrics={"train_loss": 1.07},
        history=({"step": 48, "loss": 0.5},),
        gate="regex 1 >= 0.7: passed",
        final="final_model",
        device="cpu",
        worker="w",
        started_at=NOW,
        finished_at=NOW,
    )
    write_training(open_store().task(status.task_id), summary)
    lines = shown(status, None)
    assert lines["steps"] == "48 of 48 in 18.8 s"
    assert lines["training"] == "loss 0.5"
    assert lines["gate"] == "regex 1 >= 0.7: passed"


def test_other_tasks_count_rows() -> None:
    status = submitted("inference")
    assert training_of(status, None) is None
    assert dict(task_lines(status))["rows"] == "0 of 192"


def test_the_last_word_is_found_among_those_of_others(client: redis.Redis) -> None:
    events = [progress("mine", 1, at=NOW), progress("mine", 2, at=LATER)]
    others = [progress(f"other-{number}", 9) for number in range(1_200)]
    send(client, [*events, *others])
    found = last_training_progress(client, "mine", NOW - timedelta(minutes=1))
    assert found == LastProgress(events[1], superseded=False)
    assert last_training_progress(client, "min", NOW - timedelta(minutes=1)) is None
    assert last_training_progress(client, "mine", NOW + timedelta(days=1)) is None
    assert last_training_progress(client, "mine", NOW - timedelta(minutes=1), looked_at=500) is None


def test_what_shards_counted_is_the_newest_word_of_each(client: redis.Redis) -> None:
    def counted(shard: int, second: int, **counts: int) -> TaskEvent:
        at = NOW + timedelta(seconds=second)
        told = happened("agents", TaskEventType.TASK_PROGRESS, at)
        place = ShardPlace(index=shard, total=2)
        return told.model_copy(update={"shard": place, "payload": Payload(counts=counts)})

    since = NOW - timedelta(minutes=1)
    assert last_counts(client, "agents", since) == {}
    send(client, [counted(0, 1, turns=1), counted(1, 2, turns=5), counted(0, 3, turns=2)])
    send(client, [happened("agents", TaskEventType.TASK_PROGRESS, LATER)])
    assert last_counts(client, "agents", since) == {"turns": 7}
    running = submitted("agent").model_copy(update={"counts": {"turns": 7, "failed_calls": 0}})
    assert dict(task_lines(running))["counted"] == "7 turns"


@pytest.mark.parametrize(
    "kind", [TaskEventType.SHARD_STARTED, TaskEventType.SHARD_FAILED, TaskEventType.TASK_REQUEUED]
)
def test_a_later_restart_is_seen(client: redis.Redis, kind: TaskEventType) -> None:
    told = progress("mine", 2)
    send(client, [happened("mine", TaskEventType.SHARD_STARTED, NOW - timedelta(seconds=9)), told])
    since = NOW - timedelta(minutes=1)
    assert last_training_progress(client, "mine", since) == LastProgress(told, superseded=False)
    send(client, [happened("mine", kind, LATER).model_copy(update={"attempt": 2})])
    assert last_training_progress(client, "mine", since) == LastProgress(told, superseded=True)


def test_the_document_names_its_figures() -> None:
    status = submitted()
    news = LastProgress(progress(status.task_id, 24), superseded=False)
    training = training_of(status, news)
    assert isinstance(training, TrainingView)
    document = training.model_dump(mode="json")
    assert (document["step"], document["steps"], document["eta_s"]) == (24, 48, 43.0)
    assert document["metrics"] == METRICS
