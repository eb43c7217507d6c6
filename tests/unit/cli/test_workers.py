"""`mloc workers` against a real Redis."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from mloc_dagster.cli import entry
from mloc_dagster.cli.status_command import hardware_text
from mloc_dagster.fleet import (
    FleetEngine,
    GpuDevice,
    Hardware,
    WorkerInfo,
    WorkerStatus,
    open_engine,
    queues_for,
)
from mloc_dagster.settings import settings
from tests.ports import free_port

NOW = datetime.now(UTC)
L4 = GpuDevice(index=0, name="nvidia-l4", memory_bytes=23034 << 20)
BOX = Hardware(cpus=8, memory_bytes=62 << 30, gpus=(L4, L4.model_copy(update={"index": 1})))
WORKER = WorkerInfo(
    worker_id="node-gpu0",
    host="node",
    pid=7,
    status=WorkerStatus.RUNNING,
    queues=queues_for(BOX),
    hardware=BOX,
    warm_models=("transformers:tiny-chat@1234",),
    running=("run:step:1",),
    started_at=NOW,
    last_seen=NOW - timedelta(seconds=3),
)


@pytest.fixture
def fleet(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> FleetEngine:
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    settings.cache_clear()
    return open_engine()


def test_live_workers_are_listed(fleet: FleetEngine, capsys: pytest.CaptureFixture[str]) -> None:
    fleet.register(WORKER)
    assert entry.run(["workers"]) == 0
    assert hardware_text(BOX.model_copy(update={"cpus": 1, "gpus": ()})) == "1 core, 62 GiB"
    row = capsys.readouterr().out.splitlines()[-1]
    for shown in (
        "node-gpu0",
        "RUNNING",
        "gpu, gpu.l4, gpu.nvidia",
        "8 cores, 62 GiB, 2 × nvidia-l4 22 GiB",
        "transformers:tiny-chat@1234",
        "run:step:1",
        " ago",
    ):
        assert shown in row


def test_json_is_the_whole_registration(
    fleet: FleetEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.register(WORKER)
    assert entry.run(["workers", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert WorkerInfo.model_validate(found) == WORKER


@pytest.mark.usefixtures("fleet")
def test_a_fleet_without_workers_says_how_to_start_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert entry.run(["workers"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "`mloc worker`" in said.err
    assert entry.run(["workers", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_no_redis_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLOC_REDIS_URL", raising=False)
    settings.cache_clear()
    assert entry.run(["workers"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "MLOC_REDIS_URL" in said


def test_a_redis_that_is_away_is_one_message_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    monkeypatch.setenv("MLOC_REDIS_URL", f"redis://:secret@127.0.0.1:{port}/0")
    settings.cache_clear()
    assert entry.run(["workers"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"the fleet's Redis at 127.0.0.1:{port} does not answer" in said
    assert "secret" not in said
