"""What every event log does, in memory and on Redis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from mloc_dagster.events import (
    BEGINNING,
    Channel,
    Event,
    EventLog,
    LoggedEvent,
    MemoryEventLog,
    Payload,
    RedisPublisher,
    ShardPlace,
    SloMiss,
    TaskEvent,
    TaskEventType,
    WorkerEvent,
    WorkerEventType,
    WorkerPayload,
    WorkerState,
)

FROM_START = {Channel.TASKS: BEGINNING}


@pytest.fixture(params=["memory", "redis"])
def log(request: pytest.FixtureRequest) -> Iterator[EventLog]:
    if request.param == "memory":
        yield MemoryEventLog()
        return
    publisher = RedisPublisher(request.getfixturevalue("redis_url"))
    yield publisher
    publisher.close()


def task_event(kind: TaskEventType = TaskEventType.TASK_STARTED, task: str = "t") -> TaskEvent:
    return TaskEvent(type=kind, task_id=task, run_id="r", node="n")


def worker_event(kind: WorkerEventType, **payload: object) -> WorkerEvent:
    return WorkerEvent(
        type=kind,
        worker_id="w1",
        status=WorkerState.IDLE,
        payload=WorkerPayload.model_validate(payload),
    )


def read_all(
    log: EventLog, count: int, channel: Channel = Channel.TASKS, after: str = BEGINNING
) -> list[LoggedEvent]:
    """Reads until there are `count` events, or no more come for a while."""
    found: list[LoggedEvent] = []
    while len(found) < count:
        more = log.read({channel: after}, wait_s=5)
        if not more:
            break
        found += more
        after = found[-1].position
    return found


def test_events_arrive_in_order_and_unchanged(log: EventLog) -> None:
    sent: list[Event] = [
        task_event(TaskEventType.TASK_SUBMITTED),
        task_event(TaskEventType.TASK_STARTED),
        TaskEvent(
            type=TaskEventType.SHARD_FAILED,
            task_id="t",
            run_id="r",
            node="draft – ü",
            worker_id="w1",
            attempt=2,
            shard=ShardPlace(index=0, total=4),
            error='no room\nfor "this"',
            payload=Payload(reason="again"),
        ),
        task_event(TaskEventType.TASK_SLO_MISSED).model_copy(
            update={"payload": Payload(slo=SloMiss(seconds=5, elapsed_s=7.5, late_s=2.5))}
        ),
    ]
    for each in sent:
        log.publish(each)
    assert [each.event for each in read_all(log, len(sent))] == sent


def test_a_fact_published_twice_is_there_once(log: EventLog) -> None:
    first = task_event()
    log.publish(first)
    log.publish(first.model_copy(update={"ts": datetime.now(UTC) + timedelta(seconds=3)}))
    log.publish(task_event(TaskEventType.TASK_SUCCEEDED))
    found = read_all(log, 2)
    assert [each.event.type for each in found] == ["TASK_STARTED", "TASK_SUCCEEDED"]
    assert log.read({Channel.TASKS: found[-1].position}) == []


def test_facts_of_other_shards_attempts_and_runs_are_other_facts(log: EventLog) -> None:
    about = task_event(TaskEventType.SHARD_STARTED)
    first = about.model_copy(update={"shard": ShardPlace(index=0, total=2)})
    changes: list[dict[str, object]] = [
        {"shard": ShardPlace(index=1, total=2)},
        {"attempt": 2},
        {"run_id": "r2"},
        {"task_id": "t2"},
    ]
    sent = [first, *(first.model_copy(update=each) for each in changes)]
    for each in sent:
        log.publish(each)
    assert [each.event for each in read_all(log, len(sent))] == sent


def test_each_progress_is_news(log: EventLog) -> None:
    progress = task_event(TaskEventType.TASK_PROGRESS)
    for tokens in range(3):
        moment = progress.ts + timedelta(seconds=tokens)
        log.publish(progress.model_copy(update={"ts": moment, "payload": Payload(tokens=tokens)}))
    found = read_all(log, 3)
    assert [each.event.payload for each in found] == [Payload(tokens=each) for each in range(3)]
    assert len({each.event.event_id for each in found}) == 3


def test_channels_are_apart(log: EventLog) -> None:
    log.publish(worker_event(WorkerEventType.REGISTER, host="h", queues=("cpu",)))
    log.publish(task_event())
    (of_worker,) = read_all(log, 1, Channel.WORKERS)
    (of_task,) = read_all(log, 1)
    assert of_worker.channel is Channel.WORKERS
    assert of_worker.event.worker_id == "w1"
    assert isinstance(of_task.event, TaskEvent)
    both = log.read({Channel.TASKS: BEGINNING, Channel.WORKERS: BEGINNING})
    assert {each.channel for each in both} == {Channel.TASKS, Channel.WORKERS}


def test_a_loss_seen_by_two_is_one_loss(log: EventLog) -> None:
    last_seen = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(2):
        log.publish(worker_event(WorkerEventType.LOST, since=last_seen))
    log.publish(worker_event(WorkerEventType.LOST, since=last_seen + timedelta(hours=1)))
    log.publish(worker_event(WorkerEventType.HEARTBEAT))
    log.publish(worker_event(WorkerEventType.HEARTBEAT))
    found = read_all(log, 4, Channel.WORKERS)
    assert [each.event.type for each in found] == ["LOST", "LOST", "HEARTBEAT", "HEARTBEAT"]


def test_reading_goes_on_where_it_stopped(log: EventLog) -> None:
    for number in range(5):
        log.publish(task_event(task=f"t{number}"))
    everything = read_all(log, 5)
    head = log.read(FROM_START, limit=2)
    tail = log.read({Channel.TASKS: head[-1].position})
    assert [*head, *tail] == everything


def test_a_reader_is_woken(log: EventLog) -> None:
    found: list[LoggedEvent] = []
    reader = threading.Thread(target=lambda: found.extend(read_all(log, 1)))
    reader.start()
    log.publish(task_event())
    reader.join(timeout=30)
    assert [each.event.type for each in found] == ["TASK_STARTED"]


def test_credentials_do_not_leave(log: EventLog) -> None:
    failed = task_event(TaskEventType.TASK_FAILED)
    log.publish(failed.model_copy(update={"error": "redis://:pw@host is away \udcff"}))
    (found,) = read_all(log, 1)
    assert isinstance(found.event, TaskEvent)
    assert found.event.error == "redis://:***@host is away ?"
