"""Idle workers wait on Redis: a ticket wakes one at once, without a look of the worker's own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest
import redis

from mloc_dagster.fleet import (
    RedisFleetEngine,
    StepTicket,
    TicketState,
    WorkerStatus,
    connect,
    queue_wake,
    worker_wake,
)
from tests.e2e.chaos.tcp_proxy import TcpProxy
from tests.e2e.conftest import ROOT
from tests.e2e.stack import until
from tests.fleet_threads import IdleWorkers, blocked_clients
from tests.redis_server import RedisServer, running_redis

pytestmark = pytest.mark.e2e

STAYS_AT_IT = """
from datetime import UTC, datetime
from mloc_dagster.fleet import WorkerInfo, open_engine
from mloc_dagster.fleet.worker.process import Worker, work_until_stopped

now = datetime.now(UTC)
info = WorkerInfo(
    worker_id="stays", host="here", pid=1, queues=("cpu",), started_at=now, last_seen=now
)

def perform(claim):
    claim.stop.wait()
    claim.give_back()

work_until_stopped(Worker(open_engine(), info, perform, slots=1))
"""


class Fleet(IdleWorkers):
    """Workers in threads of this process, on Redis."""

    engine: RedisFleetEngine

    def __init__(self, url: str) -> None:
        engine = RedisFleetEngine(connect(url))
        super().__init__(engine, lambda: blocked_clients(engine))


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    with closing(Fleet(redis_url)) as opened:
        yield opened


def test_as_many_idle_workers_start_as_there_are_tickets(fleet: Fleet) -> None:
    for each in range(3):
        fleet.start(f"w{each}")
    fleet.may_end.clear()
    fleet.engine.submit(
        *(StepTicket(ticket_id=f"run:{each}:1", run_id="run", queue="cpu") for each in range(2))
    )
    until(lambda: running(fleet, 2) == 2, "two workers work")
    assert fleet.waiting() == 1, "the third one sleeps"
    fleet.may_end.set()
    fleet.await_done("run:0:1", "run:1:1")


def running(fleet: Fleet, tickets: int) -> int:
    """How many of the first tickets of the run are being worked on, by as many workers."""
    known = fleet.engine.status([f"run:{each}:1" for each in range(tickets)]).values()
    return len({each.worker_id for each in known if each.state is TicketState.RUNNING})


@contextmanager
def own_fleet(folder: Path) -> Iterator[tuple[RedisServer, Fleet, TcpProxy]]:
    """A Redis of the test's own, and a network to it."""
    with (
        running_redis(folder) as server,
        TcpProxy(server.port) as network,
        closing(Fleet(server.url)) as opened,
    ):
        yield server, opened, network


def restart(server: RedisServer) -> None:
    server.stop(kill=True)
    server.start()


def drop_connections(server: RedisServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.client_kill_filter(_type="normal", skipme=True)


@pytest.mark.parametrize("disturb", [restart, drop_connections])
def test_a_worker_looks_again_after_its_connection_was_lost(
    disturb: Callable[[RedisServer], None], tmp_path: Path
) -> None:
    with own_fleet(tmp_path) as (server, fleet, network):
        fleet.start("w1", engine=RedisFleetEngine(connect(f"redis://127.0.0.1:{network.port}/0")))
        network.cut()
        disturb(server)
        fleet.submit("run:0:1")
        # As if it had been on its way to the worker when the connection broke.
        assert fleet.engine.client.delete(queue_wake("cpu")) == 1
        network.mend()
        fleet.await_done("run:0:1")
        fleet.submit("run:1:1")
        fleet.await_done("run:1:1")


def test_a_ticket_that_came_while_redis_restarted_starts(tmp_path: Path) -> None:
    with own_fleet(tmp_path) as (server, fleet, _):
        fleet.start("w1")
        server.stop()
        submits = threading.Thread(target=fleet.submit, args=("run:0:1",))
        submits.start()
        server.start()
        submits.join(60)
        fleet.await_done("run:0:1")


def test_an_idle_worker_stops_at_once_and_leaves_its_wakes_to_others(fleet: Fleet) -> None:
    first = fleet.start("w1")
    first.drain(0)
    first.close()
    assert fleet.state_of("w1") is None
    assert fleet.waiting() == 0
    fleet.submit("run:0:1")
    fleet.start("w2")
    fleet.await_done("run:0:1")
    assert fleet.done == [("w2", "run:0:1")]


def test_an_idle_worker_stops_without_redis(tmp_path: Path) -> None:
    with own_fleet(tmp_path) as (server, fleet, _):
        worker = fleet.start("w1")
        server.stop()
        worker.drain(0)
        worker.close()
        server.start()


@contextmanager
def at_work(url: str, grace_s: int, patch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A worker process in the middle of a ticket, which it gives back when it is asked to."""
    patch.setenv("MLOC_REDIS_URL", url)
    patch.setenv("MLOC_DRAIN_GRACE_S", str(grace_s))
    with closing(Fleet(url)) as fleet:
        fleet.submit("run:0:1")
        with subprocess.Popen([sys.executable, "-c", STAYS_AT_IT], cwd=ROOT) as process:
            try:
                until(lambda: fleet.state_of("stays") is WorkerStatus.RUNNING, "it works")
                yield process
            finally:
                process.kill()


def test_sigterm_hands_back_however_often_it_comes(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_work(redis_url, 1, monkeypatch) as process, closing(Fleet(redis_url)) as fleet:
        process.send_signal(SIGTERM)
        process.send_signal(SIGTERM)
        assert process.wait(60) == 0
        assert fleet.engine.status(["run:0:1"])["run:0:1"].state is TicketState.QUEUED
        assert fleet.engine.client.exists(queue_wake("cpu")), "another worker is woken"
        assert fleet.state_of("stays") is None


def test_a_second_ctrl_c_does_not_wait(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with at_work(redis_url, 600, monkeypatch) as process, closing(Fleet(redis_url)) as fleet:
        process.send_signal(SIGINT)
        until(lambda: fleet.state_of("stays") is WorkerStatus.DRAINING, "it waits for its shard")
        process.send_signal(SIGINT)
        assert process.wait(60) == 130
        assert fleet.engine.status(["run:0:1"])["run:0:1"].state is not TicketState.QUEUED


def test_what_wakes_workers_expires(fleet: Fleet) -> None:
    fleet.engine.wake("cpu")
    fleet.start("warm", warm=("m1",))
    fleet.may_end.clear()
    for each in range(3):
        fleet.submit(f"run:{each}:1", model_key="m1")
    keys = [str(each) for each in fleet.engine.client.scan_iter("*:wake")]
    assert set(keys) <= {queue_wake("cpu"), worker_wake("warm")}
    assert all(0 < int(fleet.engine.client.ttl(each)) <= 60 for each in keys)  # type: ignore[arg-type]
