"""`mloc events` as a person and as a script see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from mloc_dagster.cli import entry
from mloc_dagster.cli.events_command import event_line, since_time
from mloc_dagster.errors import InputError
from mloc_dagster.events import (
    Payload,
    ShardPlace,
    SloMiss,
    TaskEvent,
    TaskEventType,
    WorkerEvent,
    WorkerEventType,
    WorkerPayload,
    WorkerState,
    open_redis,
    send,
)
from mloc_dagster.settings import settings


@pytest.fixture
def fleet(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    return redis_url


def publish(url: str, *events: TaskEvent | WorkerEvent) -> None:
    with open_redis(url) as client:
        send(client, events)


def started(task: str) -> TaskEvent:
    return TaskEvent(
        type=TaskEventType.TASK_STARTED,
        task_id=task,
        run_id="r",
        node="draft",
        payload=Payload(rows=1200),
    )


FAILED = TaskEvent(
    type=TaskEventType.SHARD_FAILED,
    task_id="t1",
    run_id="r",
    node="draft",
    worker_id="w1",
    attempt=2,
    shard=ShardPlace(index=3, total=8),
    error="no\nanswer [from] redis://:pw@host",
)
LATE = TaskEvent(
    type=TaskEventType.TASK_SLO_MISSED,
    task_id="t2",
    run_id="r",
    payload=Payload(reason="ended late", slo=SloMiss(seconds=10, elapsed_s=12.5, late_s=2.5)),
)
LOST = WorkerEvent(
    type=WorkerEventType.LOST,
    worker_id="w1",
    status=WorkerState.LOST,
    payload=WorkerPayload(host="h", pid=7, running=("r:s:1",)),
)


def test_each_event_is_a_line(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fleet, started("t1"), FAILED, LATE, LOST)
    assert entry.run(["events"]) == 0
    lines = [line.split(maxsplit=2)[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "TASK_STARTED        t1  draft  1,200 rows",
        "SHARD_FAILED        t1  draft  shard 0003 of 8, attempt 2  on w1  no answer [from] redis://:***@host",
        "TASK_SLO_MISSED     t2  ended late, 2.5 s later than 10 s",
    ]


def test_a_shard_that_goes_on_says_what_was_there() -> None:
    going_on = FAILED.model_copy(
        update={
            "type": TaskEventType.TASK_PROGRESS,
            "error": None,
            "payload": Payload(resumed=256),
        }
    )
    assert event_line(going_on).plain.endswith(
        "shard 0003 of 8, attempt 2  on w1  256 rows already there"
    )


def test_workers_are_shown_when_asked_for(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fleet, LOST)
    assert entry.run(["events", "--workers"]) == 0
    assert "LOST                w1  LOST  h pid 7  runs r:s:1" in capsys.readouterr().out


def test_scripts_get_what_was_published(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fleet, started("t1"), started("t2-draft"), FAILED)
    assert entry.run(["events", "--json", "--task", "t2"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["task_id"] == "t2-draft"


def test_since_leaves_out_what_was_before(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    publish(fleet, started("t1"))
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    assert entry.run(["events", "--since", later]) == 0
    assert capsys.readouterr().out == ""
    assert entry.run(["events", "--since", "1m"]) == 0
    assert "t1" in capsys.readouterr().out


def test_following_shows_what_happens_and_ends_with_an_interrupt(fleet: str) -> None:
    publish(fleet, started("before"))
    command = [sys.executable, "-m", "mloc_dagster.cli", "events", "-f", "--since", "1h"]
    process = subprocess.Popen(
        command,
        env={**os.environ, "MLOC_REDIS_URL": fleet},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert "before" in process.stdout.readline()
        publish(fleet, started("after"))
        assert "after" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("url", "said", "code"),
    [(None, "MLOC_REDIS_URL", 2), ("redis://127.0.0.1:1/0", "does not answer", 1)],
)
def test_without_redis_it_says_so(
    url: str | None,
    said: str,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("MLOC_REDIS_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("MLOC_REDIS_URL", url)
    settings.cache_clear()
    assert entry.run(["events"]) == code
    assert said in capsys.readouterr().err


def test_a_time_that_is_none_is_bad_input(fleet: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.run(["events", "--since", "yesterday"]) == 2
    assert "'yesterday'" in capsys.readouterr().err


def test_times_and_durations() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert since_time("1d", now) == datetime(2026, 1, 1, tzinfo=UTC)
    assert since_time("1.5m", now) == now - timedelta(seconds=90)
    assert since_time("2026-01-01T12:00:00+02:00", now) == datetime(2026, 1, 1, 10, tzinfo=UTC)
    with pytest.raises(InputError):
        since_time("5 parsecs", now)
