"""What a worker does on every `FleetEngine`: it waits, and a ticket that it can take starts it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from mloc_dagster.events import WorkerEventType
from mloc_dagster.fleet import (
    RUNS_QUEUE,
    Hardware,
    MemoryFleetEngine,
    RedisFleetEngine,
    Requirements,
    TicketState,
    WorkerStatus,
    connect,
)
from tests.fleet_threads import IdleWorkers, blocked_clients, blocked_threads, until


@pytest.fixture(params=["memory", "redis"])
def fleet(request: pytest.FixtureRequest) -> Iterator[IdleWorkers]:
    if request.param == "memory":
        memory = MemoryFleetEngine()
        opened = IdleWorkers(memory, lambda: blocked_threads(memory))
    else:
        redis = RedisFleetEngine(connect(request.getfixturevalue("redis_url")))
        opened = IdleWorkers(redis, lambda: blocked_clients(redis))
    with closing(opened):
        yield opened


def test_a_run_starts_at_once_on_an_idle_run_worker(fleet: IdleWorkers) -> None:
    fleet.start("r1", queues=(RUNS_QUEUE,))
    fleet.submit("run:run", queue=RUNS_QUEUE)
    fleet.await_done("run:run")


def test_only_the_worker_that_fits_starts(fleet: IdleWorkers) -> None:
    fleet.start("small")
    fleet.start("large", Hardware(cpus=8, memory_bytes=64 << 30))
    fleet.submit("run:0:1", requirements=Requirements(cpus=8))
    fleet.await_done("run:0:1")
    assert fleet.done == [("large", "run:0:1")]


def test_the_warm_worker_starts_though_others_waited_longer(fleet: IdleWorkers) -> None:
    fleet.start("cold")
    fleet.start("warm", warm=("m1",))
    fleet.submit("run:0:1", model_key="m1")
    fleet.await_done("run:0:1")
    assert fleet.done == [("warm", "run:0:1")]


def test_another_one_starts_where_the_warm_worker_is_gone(fleet: IdleWorkers) -> None:
    fleet.start("cold")
    gone = fleet.start("warm", warm=("m1",))
    info = gone.heartbeat.info
    gone.close()
    fleet.engine.register(info)  # as a killed one leaves it
    until(lambda: fleet.state_of("warm") is WorkerStatus.IDLE, "it looks alive")
    fleet.submit("run:0:1", model_key="m1")
    fleet.await_done("run:0:1")
    assert fleet.done == [("cold", "run:0:1")]


def test_a_ticket_starts_at_once_on_an_idle_worker(fleet: IdleWorkers) -> None:
    fleet.start("w1")
    for each in range(3):
        fleet.submit(f"run:{each}:1")
        fleet.await_done(f"run:{each}:1")
    told = [each.type for each in fleet.events]
    assert told[0] is WorkerEventType.REGISTER
    assert [ticket for _, ticket in fleet.done] == ["run:0:1", "run:1:1", "run:2:1"]


def test_a_worker_that_drains_gives_back_what_it_takes_no_more(fleet: IdleWorkers) -> None:
    worker = fleet.start("w1")
    fleet.may_end.clear()
    fleet.submit("run:0:1")
    fleet.submit("run:1:1")
    until(lambda: fleet.state_of("w1") is WorkerStatus.RUNNING, "it works")
    worker.drain(60)
    until(lambda: fleet.state_of("w1") is WorkerStatus.DRAINING, "it drains")
    fleet.may_end.set()
    worker.close()
    assert fleet.done == [("w1", "run:0:1")]
    assert fleet.engine.status(["run:1:1"])["run:1:1"].state is TicketState.QUEUED
    assert fleet.state_of("w1") is None
    fleet.start("w2")
    fleet.await_done("run:1:1")
