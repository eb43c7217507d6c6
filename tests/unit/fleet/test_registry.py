"""The registry of workers and their heartbeat, on every engine."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep

import pytest
import redis

from mloc_dagster.events import WorkerEvent
from mloc_dagster.fleet.engine import FleetEngine, WorkerInfo, WorkerStatus
from mloc_dagster.fleet.hardware import GpuDevice, Hardware
from mloc_dagster.fleet.memory.engine import MemoryFleetEngine
from mloc_dagster.fleet.redis.engine import RedisFleetEngine
from mloc_dagster.fleet.redis.records import connect, heartbeat_key, worker_key
from mloc_dagster.fleet.worker.heartbeat import Heartbeat, WorkerRegistry
from mloc_dagster.settings import settings
from tests.redis_server import running_redis

Told = queue.Queue[WorkerEvent]


def worker(name: str = "node-1", **changes: object) -> WorkerInfo:
    now = datetime.now(UTC)
    gpu = GpuDevice(index=0, name="nvidia-h200", memory_bytes=143771 << 20)
    known = WorkerInfo(
        worker_id=name,
        host="node",
        pid=7,
        status=WorkerStatus.IDLE,
        queues=("gpu", "gpu.h200"),
        hardware=Hardware(cpus=8, memory_bytes=1 << 36, gpus=(gpu,)),
        tags={"rack": "7", "größe": "groß"},
        warm_models=("transformers:1",),
        running=("run:step:1",),
        started_at=now,
        last_seen=now,
    )
    return known.model_copy(update=changes)


@pytest.fixture(params=["memory", "redis"])
def engine(request: pytest.FixtureRequest) -> Iterator[FleetEngine]:
    """Each engine in turn."""
    if request.param == "memory":
        yield MemoryFleetEngine()
        return
    opened = RedisFleetEngine(connect(request.getfixturevalue("redis_url")))
    yield opened
    opened.close()


@pytest.fixture
def told() -> Told:
    return queue.Queue()


@pytest.fixture
def registry(engine: FleetEngine, told: Told) -> WorkerRegistry:
    return WorkerRegistry(engine, told.put)


def kinds(told: Told) -> list[str]:
    return [told.get_nowait().type.value for _ in range(told.qsize())]


def until(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + 20
    while not condition():
        assert monotonic() < deadline, "waited in vain"
        sleep(0.01)


def await_event(told: Told, kind: str) -> WorkerEvent:
    while True:
        event = told.get(timeout=20)
        if event.type == kind:
            return event


class Time:
    """Lets heartbeats lapse, as their TTL does."""

    def __init__(self, engine: FleetEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self._engine = engine
        self._monkeypatch = monkeypatch

    def lapse(self, name: str) -> None:
        """Returns once the worker's heartbeat has lapsed; other heartbeats stay."""
        known = self._engine.worker(name)
        assert known is not None
        with self._monkeypatch.context() as patch:
            patch.setenv("MLOC_HEARTBEAT_TTL_S", "0.001")
            settings.cache_clear()
            self._engine.register(known)
        settings.cache_clear()
        until(lambda: name in self._engine.silent_workers())


@pytest.fixture
def time(engine: FleetEngine, monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(engine, monkeypatch)


def test_a_worker_is_read_as_it_registered(
    registry: WorkerRegistry, engine: FleetEngine, told: Told
) -> None:
    info = worker()
    registry.register(info)
    assert engine.workers() == [info]
    assert kinds(told) == ["REGISTER"]


def test_the_heartbeat_expires_after_the_configured_time(
    registry: WorkerRegistry, engine: FleetEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HEARTBEAT_TTL_S", "0.2")
    settings.cache_clear()
    registry.register(worker())
    until(lambda: not engine.workers())
    assert engine.silent_workers() == ["node-1"], "it is lost once somebody says so"
    assert registry.lost() == ["node-1"]


def test_heartbeats_and_changes_of_status_are_told_apart(
    registry: WorkerRegistry, engine: FleetEngine, told: Told
) -> None:
    registry.register(worker())
    registry.heartbeat(worker(warm_models=()))
    registry.heartbeat(worker(status=WorkerStatus.RUNNING))
    assert kinds(told) == ["REGISTER", "HEARTBEAT", "STATUS"]
    assert engine.workers()[0].status is WorkerStatus.RUNNING


def test_a_lost_worker_is_told_once_and_stays_readable(
    registry: WorkerRegistry, engine: FleetEngine, told: Told, time: Time
) -> None:
    registry.register(worker("a"))
    registry.register(worker("b"))
    time.lapse("a")
    assert [info.worker_id for info in engine.workers()] == ["b"]
    other = WorkerRegistry(engine, told.put)
    assert [registry.lost(), other.lost(), registry.lost()] == [["a"], [], []]
    *_, event = (told.get_nowait() for _ in range(3))
    assert (event.type, event.worker_id, event.status) == ("LOST", "a", "LOST")
    assert event.payload.running == ("run:step:1",)
    assert told.empty()
    known = engine.worker("a")
    assert known is not None
    assert known.running == ("run:step:1",)


def test_a_worker_that_was_given_up_comes_back_for_good(
    registry: WorkerRegistry, engine: FleetEngine, told: Told, time: Time
) -> None:
    registry.register(worker())
    time.lapse("node-1")
    registry.lost()
    registry.heartbeat(worker())
    assert engine.workers() != []
    assert kinds(told) == ["REGISTER", "LOST", "REGISTER"]


def test_a_worker_that_speaks_in_time_is_not_struck_off(
    registry: WorkerRegistry, engine: FleetEngine, time: Time
) -> None:
    registry.register(worker())
    time.lapse("node-1")
    registry.heartbeat(worker())
    assert not engine.strike_off("node-1")
    assert not engine.strike_off("never-seen")
    assert [info.worker_id for info in engine.workers()] == ["node-1"]


def test_unregister_leaves_nothing_behind(
    registry: WorkerRegistry, engine: FleetEngine, told: Told
) -> None:
    registry.register(worker())
    registry.unregister("node-1")
    registry.unregister("node-1")
    registry.unregister("never-seen")
    assert engine.workers() == []
    assert registry.lost() == []
    assert engine.worker("node-1") is None
    assert kinds(told) == ["REGISTER", "UNREGISTER"]


def test_a_heartbeat_registers_tells_changes_and_unregisters(
    registry: WorkerRegistry, engine: FleetEngine, told: Told
) -> None:
    heart = Heartbeat(registry, worker(status=WorkerStatus.STARTING), period_s=60)
    heart.start()
    assert told.get(timeout=20).type == "REGISTER"
    heart.update(status=WorkerStatus.IDLE)
    assert await_event(told, "STATUS").status == "IDLE"
    heart.update(warm_models=["transformers:2"], running=[])
    changed = await_event(told, "HEARTBEAT")
    assert changed.payload.warm_models == ("transformers:2",)
    assert changed.payload.running == ()
    assert engine.workers()[0].warm_models == ("transformers:2",)
    heart.stop()
    assert kinds(told) == ["UNREGISTER"]
    assert engine.workers() == []


def test_a_heartbeat_repeats_and_says_when(registry: WorkerRegistry, told: Told) -> None:
    heart = Heartbeat(registry, worker(), period_s=0.01)
    heart.start()
    first, second = await_event(told, "HEARTBEAT"), await_event(told, "HEARTBEAT")
    heart.stop()
    assert first.ts < second.ts
    assert first.event_id != second.event_id


def test_what_has_not_changed_is_not_sent(registry: WorkerRegistry, told: Told) -> None:
    heart = Heartbeat(registry, worker(), period_s=60)
    heart.start()
    told.get(timeout=20)
    heart.update(status=WorkerStatus.IDLE, running=["run:step:1"])
    heart.update(status=WorkerStatus.DRAINING)
    assert told.get(timeout=20).type == "STATUS"
    heart.stop()


def test_a_restarted_worker_registers_again_under_its_name(
    registry: WorkerRegistry, told: Told
) -> None:
    registry.register(worker(status=WorkerStatus.RUNNING))
    heart = Heartbeat(registry, worker(pid=8), period_s=60)
    heart.start()
    told.get(timeout=20)
    assert told.get(timeout=20).type == "REGISTER"
    heart.stop()


# On Redis only


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as opened:
        yield opened


def test_redis_keeps_what_is_known_of_a_lost_worker_for_a_day(client: redis.Redis) -> None:
    engine = RedisFleetEngine(client)
    registry = WorkerRegistry(engine)
    registry.register(worker())
    client.delete(heartbeat_key("node-1"))
    assert registry.lost() == ["node-1"]
    assert 0 < int(client.ttl(worker_key("node-1"))) <= 86_400  # type: ignore[arg-type]
    registry.heartbeat(worker())
    assert client.ttl(worker_key("node-1")) == -1
    registry.unregister("node-1")
    assert client.keys("worker*") == []


def test_a_worker_of_another_version_does_not_hide_the_rest(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    engine = RedisFleetEngine(client)
    engine.register(worker("a"))
    engine.register(worker("b"))
    client.hset(worker_key("a"), "status", "DREAMING")
    assert [info.worker_id for info in engine.workers()] == ["b"]
    assert "worker a is not understood" in caplog.text


def impatient(url: str) -> redis.Redis:
    """A client that tells of an outage at once."""
    return redis.Redis.from_url(url, decode_responses=True)


def test_a_heartbeat_outlives_redis(
    tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with running_redis(tmp_path) as server, impatient(server.url) as client:
        engine = RedisFleetEngine(client)
        registry = WorkerRegistry(engine, told.put)
        heart = Heartbeat(registry, worker(), period_s=0.01)
        heart.start()
        await_event(told, "HEARTBEAT")
        server.stop(kill=True)
        until(lambda: "heartbeats do not arrive" in caplog.text)
        server.start()
        client.flushall()
        await_event(told, "REGISTER")
        until(lambda: "heartbeats arrive again" in caplog.text)
        assert [info.worker_id for info in engine.workers()] == ["node-1"]
        assert caplog.text.count("heartbeats do not arrive") == 1
        heart.stop()


@pytest.mark.parametrize("patient", [False, True])
def test_a_worker_stops_without_redis(
    patient: bool, tmp_path: Path, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        running_redis(tmp_path) as server,
        (connect if patient else impatient)(server.url) as client,
    ):
        heart = Heartbeat(WorkerRegistry(RedisFleetEngine(client), told.put), worker())
        heart.start()
        await_event(told, "REGISTER")
        server.stop()
        heart.stop(timeout_s=1)
        assert "the worker could not unregister" in caplog.text
        server.start()  # lets go of the client that still waits
