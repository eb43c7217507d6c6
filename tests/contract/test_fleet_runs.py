"""What every `FleetEngine` carries: whole runs, on workers that may be lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count
from random import Random

import dagster as dg
import pytest
from dagster import DagsterEventType as Event, DagsterRunStatus as Status
from dagster._core.launcher import ResumeRunContext, WorkerStatus as Health

from mloc_dagster.fleet import (
    CPU_QUEUE,
    RUNS_QUEUE,
    FleetEngine,
    Jobs,
    MemoryFleetEngine,
    RedisFleetEngine,
    RunWorker,
    StopReason,
    TicketState,
    connect,
    run_ticket,
    run_ticket_id,
)
from mloc_dagster.ops import NODES_TAG, run_tasks
from mloc_dagster.settings import settings
from mloc_dagster.tasks import Setbacks, setbacks_of
from tests.fleet_threads import FleetThreads, open_instance, until

SHARDS = 3
LEASE_S = 0.05
"""How long what a dead worker holds stays its own."""


def seed_that_fails_once() -> int:
    """A seed of the echo task with which shard 0 fails its first of two attempts."""

    def fails(seed: int, attempt: int) -> bool:
        return Random(f"{seed}:0:{attempt}").random() < 0.5

    return next(seed for seed in count() if fails(seed, 1) and not fails(seed, 2))


ONCE = "retries: {max: 0}"
TEMPLATES = {
    "quick": (SHARDS, ONCE),
    "slow": (SHARDS, f"echo: {{delay_s: 0.3}}\n  {ONCE}"),
    "endless": (SHARDS, f"echo: {{delay_s: 600}}\n  {ONCE}"),
    "huge": (1, "resources: {hardware: {gpu: {count: 64}}}\n  retries: {max: 3, delay_s: 0}"),
    "failsonce": (
        1,
        f"echo: {{fail_rate: 0.5, seed: {seed_that_fails_once()}}}\n"
        "  retries: {max: 1, delay_s: 0}",
    ),
}


def template(name: str) -> str:
    """One row a shard."""
    rows, more = TEMPLATES[name]
    items = [f"row {each}" for each in range(rows)]
    return f"""
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: {name}}}
spec:
  data: {{type: list, items: {items}}}
  parallel: {{max_shards: {rows}}}
  {more}
"""


@pytest.fixture(params=["memory", "redis"])
def engine(request: pytest.FixtureRequest) -> Iterator[FleetEngine]:
    if request.param == "memory":
        yield MemoryFleetEngine()
        return
    opened = RedisFleetEngine(connect(request.getfixturevalue("redis_url")))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dg.DagsterInstance, Jobs]]:
    """An instance and the jobs of a template library, for all runs of this module."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "templates").mkdir()
    for each in TEMPLATES:
        (folder / "templates" / f"{each}.yaml").write_text(template(each))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_TEMPLATES_DIR", str(folder / "templates"))
        settings.cache_clear()
        instance = open_instance(folder)
        yield instance, Jobs()
        instance.dispose()
    settings.cache_clear()


@pytest.fixture
def fleet(engine: FleetEngine, library: tuple[dg.DagsterInstance, Jobs]) -> Iterator[FleetThreads]:
    opened = FleetThreads(engine, *library)
    yield opened
    opened.close()


def assert_complete(fleet: FleetThreads, run_id: str) -> None:
    """Each shard succeeded once, at its first attempt, and every row is there."""
    assert fleet.shards(run_id, Event.STEP_SUCCESS) == [f"{each:04d}" for each in range(SHARDS)]
    assert fleet.steps(run_id, Event.STEP_UP_FOR_RETRY) == []
    assert fleet.outputs(run_id) == [f"row {each}" for each in range(SHARDS)]


def assert_nothing_left(fleet: FleetThreads, run_id: str) -> None:
    ticket_id = run_ticket_id(run_id)

    def is_gone() -> bool:
        ticket = fleet.engine.status([ticket_id])[ticket_id]
        return ticket.state is TicketState.LOST and ticket.worker_id is None

    until(is_gone, "the run's own ticket is gone")
    assert fleet.engine.run_details(run_id) is None
    assert list(fleet.engine.messages(run_id)) == []
    assert set(fleet.engine.queue_depths().values()) <= {0}
    assert list(fleet.engine.lapsed(RUNS_QUEUE)) == list(fleet.engine.lapsed(CPU_QUEUE)) == []


def test_a_run_goes_from_its_plan_over_shards_to_its_responses(fleet: FleetThreads) -> None:
    fleet.start_run_worker("r1")
    for name in ("w1", "w2"):
        fleet.start_step_worker(name)
    runs = [fleet.launch("quick"), fleet.launch("quick")]
    for run_id in runs:
        assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
        assert_complete(fleet, run_id)
        assert len(fleet.steps(run_id, Event.RUN_START)) == 1
        assert_nothing_left(fleet, run_id)


def test_a_failed_attempt_is_followed_by_another(fleet: FleetThreads) -> None:
    fleet.start_run_worker("r1")
    fleet.start_step_worker("w1")
    run_id = fleet.launch("failsonce")
    assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
    assert len(fleet.steps(run_id, Event.STEP_UP_FOR_RETRY)) == 1
    assert fleet.outputs(run_id) == ["row 0"]


def test_what_no_worker_can_take_says_so_and_fails(
    fleet: FleetThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_UNSATISFIABLE_TIMEOUT_S", "1")
    settings.cache_clear()
    fleet.start_run_worker("r1")
    fleet.start_step_worker("w1")
    run_id = fleet.launch("huge")
    assert fleet.await_end(run_id) is Status.FAILURE
    assert "needs 64 GPUs, has none" in fleet.text(run_id)
    assert fleet.steps(run_id, Event.STEP_UP_FOR_RETRY) == [], "waiting again would not help"


def test_cancelling_a_run_stops_its_shards(fleet: FleetThreads) -> None:
    fleet.start_run_worker("r1")
    fleet.start_step_worker("w1")
    run_id = fleet.launch("endless")
    until(lambda: fleet.shards(run_id, Event.STEP_START), "a shard runs")
    assert fleet.launcher.terminate(run_id)
    assert fleet.await_end(run_id) is Status.CANCELED
    assert_nothing_left(fleet, run_id)
    quick = fleet.launch("quick")
    assert fleet.await_end(quick) is Status.SUCCESS, "its worker is free again"


def test_cancelling_a_run_that_no_worker_has_ends_it(fleet: FleetThreads) -> None:
    run_id = fleet.launch("quick")
    assert fleet.launcher.terminate(run_id)
    assert fleet.await_end(run_id) is Status.CANCELED
    fleet.start_run_worker("r1")
    other = fleet.launch("quick")
    fleet.start_step_worker("w1")
    assert fleet.await_end(other) is Status.SUCCESS
    assert fleet.steps(run_id, Event.RUN_START) == []


def test_a_lost_workers_shard_goes_to_another_one(fleet: FleetThreads) -> None:
    fleet.start_run_worker("r1")
    run_id = fleet.launch("quick")
    lost = fleet.take(CPU_QUEUE, "dead", LEASE_S)
    until(lambda: "fell silent" in fleet.text(run_id), "the run notices it")
    fleet.start_step_worker("w1")
    assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
    assert "worker dead fell silent; the shard goes to another worker" in fleet.text(run_id)
    assert_complete(fleet, run_id)
    (task,) = run_tasks("quick", {NODES_TAG: "quick"}, run_id)
    assert setbacks_of(fleet.instance, run_id, task) == Setbacks(retries=0, losses=1)
    assert not lost.finish("too late")


def test_a_shard_of_a_worker_that_drains_goes_to_another_one(fleet: FleetThreads) -> None:
    fleet.start_run_worker("r1")
    first = fleet.start_step_worker("w1")
    run_id = fleet.launch("slow")
    until(lambda: fleet.shards(run_id, Event.STEP_START), "w1 works")
    first.drain(0)
    first.close()
    fleet.start_step_worker("w2")
    assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
    assert_complete(fleet, run_id)
    assert "fell silent" not in fleet.text(run_id)


def test_another_run_worker_adopts_the_run_of_a_lost_one(fleet: FleetThreads) -> None:
    run_id = fleet.launch("slow")
    claim = fleet.take(RUNS_QUEUE, "dead", LEASE_S)
    carrying = threading.Thread(
        target=RunWorker(fleet.engine, fleet.instance).perform, args=(claim,)
    )
    carrying.start()
    fleet.start_step_worker("w1")
    until(lambda: fleet.shards(run_id, Event.STEP_SUCCESS), "a shard is done")
    claim.ask_to_stop(StopReason.LOST)  # it dies, and says nothing
    carrying.join(300)
    fleet.start_run_worker("r2")
    assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
    assert "a new run worker goes on with this run" in fleet.text(run_id)
    assert_complete(fleet, run_id)
    assert len(fleet.shards(run_id, Event.STEP_START)) == SHARDS, "no shard ran twice"
    assert len(fleet.steps(run_id, Event.RUN_START)) == 1
    assert_nothing_left(fleet, run_id)


def test_a_run_goes_back_when_its_worker_drains(fleet: FleetThreads) -> None:
    first = fleet.start_run_worker("r1")
    run_id = fleet.launch("slow")
    fleet.start_step_worker("w1")
    until(lambda: fleet.shards(run_id, Event.STEP_START), "a shard runs")
    first.drain(0)
    first.close()
    ticket_id = run_ticket_id(run_id)
    assert fleet.engine.status([ticket_id])[ticket_id].state is TicketState.QUEUED
    fleet.start_run_worker("r2")
    assert fleet.await_end(run_id) is Status.SUCCESS, fleet.text(run_id)
    assert_complete(fleet, run_id)


def test_a_run_is_failed_after_ten_lost_run_workers(fleet: FleetThreads) -> None:
    run = fleet.create("quick")
    ticket_id = run_ticket_id(run.run_id)
    for _ in range(10):
        fleet.engine.submit(run_ticket(run))
        fleet.take(RUNS_QUEUE, "dead", LEASE_S)
        until(lambda: fleet.engine.lapsed(RUNS_QUEUE), "its lease lapses")
    fleet.engine.submit(run_ticket(run))
    assert fleet.engine.status([ticket_id])[ticket_id].losses == 10
    fleet.start_run_worker("r1")
    assert fleet.await_end(run.run_id) is Status.FAILURE
    (failure,) = fleet.instance.all_logs(run.run_id, of_type=Event.RUN_FAILURE)
    assert "10 run workers were lost" in failure.user_message + failure.message


def test_dagster_sees_how_the_worker_of_a_run_is(fleet: FleetThreads) -> None:
    health = fleet.launcher.check_run_worker_health
    run = fleet.create("endless")
    assert health(run).status is Health.FAILED, "it was never handed over"
    fleet.hand_over(run)
    assert health(run).status is Health.RUNNING
    fleet.start_run_worker("r1")
    until(lambda: health(run).run_worker_id == "r1", "a run worker has it")
    assert fleet.launcher.terminate(run.run_id)
    assert fleet.await_end(run.run_id) is Status.CANCELED


def test_a_run_that_the_fleet_has_forgotten_is_queued_again(fleet: FleetThreads) -> None:
    run = fleet.create("quick")
    fleet.hand_over(run)
    fleet.engine.forget_run(run.run_id)
    assert fleet.launcher.check_run_worker_health(run).status is Health.FAILED
    fleet.launcher.resume_run(ResumeRunContext(run, workspace=None, resume_attempt_number=None))
    fleet.start_run_worker("r1")
    fleet.start_step_worker("w1")
    assert fleet.await_end(run.run_id) is Status.SUCCESS, fleet.text(run.run_id)
    assert_complete(fleet, run.run_id)
