"""Runs on real workers that are killed, drained, doubled and missing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import count, pairwise
from pathlib import Path
from random import Random
from signal import SIGCONT, SIGSTOP, SIGTERM

import dagster as dg
import pytest
from dagster import DagsterEventType as Event, DagsterRunStatus as Status
from dagster._core.launcher import WorkerStatus as Health
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from mloc_dagster.home import postgres_url
from mloc_dagster.ops import NODES_TAG, run_tasks
from mloc_dagster.settings import settings
from mloc_dagster.tasks import Setbacks, setbacks_of
from tests.e2e.fleet_processes import RUNS, FleetProcesses
from tests.e2e.stack import until
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ONCE = "retries: {max: 0}"
POOL = "narrow"


def seed_that_fails_once() -> int:
    """A seed of the echo task with which shard 0 fails its first of two attempts."""

    def fails(seed: int, attempt: int) -> bool:
        return Random(f"{seed}:0:{attempt}").random() < 0.5

    return next(seed for seed in count() if fails(seed, 1) and not fails(seed, 2))


TEMPLATES = {
    "quick": (2, ONCE),
    "slow": (4, f"echo: {{delay_s: 1.0}}\n  {ONCE}"),
    "long": (12, f"echo: {{delay_s: 0.2}}\n  {ONCE}"),
    "short": (1, ONCE),
    "pooled": (4, f"echo: {{delay_s: 0.3}}\n  resources: {{pool: {POOL}}}\n  {ONCE}"),
    "huge": (1, "resources: {hardware: {gpu: {count: 64}}}\n  retries: {max: 3, delay_s: 0}"),
    "failsonce": (
        1,
        f"echo: {{fail_rate: 0.5, seed: {seed_that_fails_once()}}}\n"
        "  retries: {max: 1, delay_s: 0}",
    ),
    "hopeless": (1, "echo: {fail_rate: 1.0}\n  retries: {max: 1, delay_s: 0}"),
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


@pytest.fixture(scope="module")
def environment(
    redis_server: RedisServer, session_instance: dg.DagsterInstance, session_home: Path
) -> Iterator[dict[str, str]]:
    """Databases of this module's own, on the servers of the session, and a library."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        patch.setenv("MLOC_HOME", str(session_home))
        settings.cache_clear()
        server = make_url(postgres_url())
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text("DROP DATABASE IF EXISTS fleet_engine WITH (FORCE)"))
            connection.execute(text("CREATE DATABASE fleet_engine"))
        admin.dispose()
        (folder / "templates").mkdir()
        for each in TEMPLATES:
            (folder / "templates" / f"{each}.yaml").write_text(template(each))
        known = {
            "MLOC_HOME": str(folder / "home"),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "MLOC_TEMPLATES_DIR": str(folder / "templates"),
            "MLOC_REDIS_URL": redis_server.url.removesuffix("/0") + "/5",
            "MLOC_POSTGRES_URL": server.set(database="fleet_engine").render_as_string(False),
            "MLOC_LEASE_TTL_S": "2",
            "MLOC_DRAIN_GRACE_S": "0",
        }
        for key, value in known.items():
            patch.setenv(key, value)
        settings.cache_clear()
        yield known
    settings.cache_clear()


@pytest.fixture(scope="module")
def started(environment: dict[str, str]) -> Iterator[FleetProcesses]:
    """A fleet that begins with two run workers and nobody for shards."""
    folder = Path(environment["MLOC_HOME"])
    folder.mkdir()
    opened = FleetProcesses(folder, environment)
    opened.engine.client.flushdb()
    opened.start("r1", RUNS)
    opened.start("r2", RUNS)
    yield opened
    opened.close()


@pytest.fixture
def fleet(
    started: FleetProcesses, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> FleetProcesses:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    settings.cache_clear()
    return started


def assert_complete(fleet: FleetProcesses, run_id: str, rows: int) -> None:
    """Each shard succeeded once, at its first attempt, and every row is there."""
    assert sorted(fleet.shards(run_id, Event.STEP_SUCCESS)) == [f"{n:04d}" for n in range(rows)]
    assert fleet.steps(run_id, Event.STEP_UP_FOR_RETRY) == []
    assert fleet.outputs(run_id) == [f"row {each}" for each in range(rows)]


def begun_by(fleet: FleetProcesses, run_id: str, worker: str) -> str | None:
    """The step that a worker is at and that has begun in Dagster's eyes too."""
    begun = fleet.steps(run_id, Event.STEP_START)
    theirs = [ticket for ticket, who in fleet.running(run_id).items() if who == worker]
    return next((step for each in theirs if (step := each.split(":")[1]) in begun), None)


def test_a_run_goes_on_when_its_run_worker_is_killed(fleet: FleetProcesses) -> None:
    fleet.await_workers("r1", "r2")
    run_id = fleet.launch("slow")
    until(lambda: fleet.engine.queue_depths().get("cpu") == 4, "four shards wait")
    first = fleet.run_worker(run_id)
    assert first in ("r1", "r2")
    fleet.kill(first)
    until(lambda: fleet.run_worker(run_id) not in (first, None), "another run worker has it")
    until(lambda: "a new run worker goes on" in fleet.text(run_id), "the log says so")
    fleet.start("w1")
    fleet.start("w2")
    fleet.start("r3", RUNS, MLOC_UNSATISFIABLE_TIMEOUT_S="4")
    assert fleet.await_end(run_id) is Status.SUCCESS
    assert_complete(fleet, run_id, 4)
    assert len(fleet.steps(run_id, Event.RUN_START)) == 1
    fleet.await_workers("w1", "w2", "r3")
    # Of the run workers only the one with little patience stays.
    (second,) = {"r1", "r2"} - {first}
    fleet.signal(second, SIGTERM)
    assert second not in fleet.registered(), "who is told to stop leaves"


def test_submitting_a_run_twice_runs_it_once(fleet: FleetProcesses) -> None:
    run = fleet.create("quick")
    fleet.hand_over(run)
    fleet.hand_over(run)
    assert fleet.await_end(run.run_id) is Status.SUCCESS
    fleet.hand_over(run)
    assert_complete(fleet, run.run_id, 2)
    other = fleet.launch("quick")
    assert fleet.await_end(other) is Status.SUCCESS
    for run_id in (run.run_id, other):
        assert len(fleet.steps(run_id, Event.RUN_START)) == 1
        assert len(fleet.shards(run_id, Event.STEP_START)) == 2


def test_a_killed_workers_shard_goes_to_another_one(fleet: FleetProcesses) -> None:
    run_id = fleet.launch("slow")
    step = until(lambda: begun_by(fleet, run_id, "w1"), "w1 works")
    fleet.kill("w1")
    fleet.start("w3")
    assert fleet.await_end(run_id) is Status.SUCCESS
    assert_complete(fleet, run_id, 4)
    assert "worker w1 fell silent; the shard goes to another worker" in fleet.text(run_id)
    starts = [each for each in fleet.steps(run_id, Event.STEP_START) if each == step]
    assert len(starts) == 2
    (task,) = run_tasks("slow", {NODES_TAG: "slow"}, run_id)
    assert setbacks_of(fleet.instance, run_id, task) == Setbacks(retries=0, losses=1)


def test_a_frozen_worker_cannot_speak_for_its_shard_any_more(fleet: FleetProcesses) -> None:
    fleet.await_workers("w2", "w3")
    run_id = fleet.launch("slow")
    until(lambda: "w2" in fleet.running(run_id).values(), "w2 works")
    fleet.signal("w2", SIGSTOP)
    until(lambda: "w2 fell silent; the shard goes" in fleet.text(run_id), "the shard went on")
    fleet.signal("w2", SIGCONT)
    assert fleet.await_end(run_id) is Status.SUCCESS
    assert_complete(fleet, run_id, 4)


def test_a_worker_that_is_told_to_stop_gives_its_shard_back(fleet: FleetProcesses) -> None:
    run_id = fleet.launch("slow")
    until(lambda: "w2" in fleet.running(run_id).values(), "w2 works")
    fleet.signal("w2", SIGTERM)
    assert "w2" not in fleet.registered()
    fleet.start("w4")
    assert fleet.await_end(run_id) is Status.SUCCESS
    assert_complete(fleet, run_id, 4)
    assert "fell silent" not in fleet.text(run_id)
    fleet.await_workers("w4")


def test_what_no_worker_can_take_says_so_and_fails(fleet: FleetProcesses) -> None:
    run_id = fleet.launch("huge")
    assert fleet.await_end(run_id) is Status.FAILURE
    said = fleet.text(run_id)
    assert "waiting: no live worker fits" in said
    assert "gave up after" in said
    assert "needs 64 GPUs, has none" in said
    assert fleet.steps(run_id, Event.STEP_UP_FOR_RETRY) == [], "waiting again would not help"


def test_a_failing_shard_is_tried_again_as_often_as_its_template_says(
    fleet: FleetProcesses,
) -> None:
    once, hopeless = fleet.launch("failsonce"), fleet.launch("hopeless")
    assert fleet.await_end(once) is Status.SUCCESS
    assert fleet.await_end(hopeless) is Status.FAILURE
    assert len(fleet.steps(once, Event.STEP_UP_FOR_RETRY)) == 1
    assert fleet.outputs(once) == ["row 0"]
    assert len(fleet.steps(hopeless, Event.STEP_UP_FOR_RETRY)) == 1
    assert "attempt 2 of 2 failed: echo failed on purpose" in fleet.text(hopeless)


def test_a_pool_caps_how_many_shards_run_at_once(fleet: FleetProcesses) -> None:
    fleet.instance.event_log_storage.set_concurrency_slots(POOL, 1)
    runs = [fleet.launch("pooled"), fleet.launch("pooled")]
    for run_id in runs:
        assert fleet.await_end(run_id) is Status.SUCCESS
        assert_complete(fleet, run_id, 4)
    times = [span for run_id in runs for span in spans(fleet, run_id)]
    assert overlaps(times) == 0


def test_a_pool_survives_its_run_worker(fleet: FleetProcesses) -> None:
    fleet.instance.event_log_storage.set_concurrency_slots(POOL, 1)
    run_id = fleet.launch("pooled")
    until(lambda: len(fleet.shards(run_id, Event.STEP_SUCCESS)) == 2, "half of it is done")
    fleet.kill("r3")
    fleet.start("r4", RUNS)
    assert fleet.await_end(run_id) is Status.SUCCESS
    assert_complete(fleet, run_id, 4)
    assert overlaps(spans(fleet, run_id)) == 0
    info = fleet.instance.event_log_storage.get_concurrency_info(POOL)
    assert info.active_slot_count == 0


def test_a_cancelled_run_leaves_its_pool_to_others(fleet: FleetProcesses) -> None:
    fleet.instance.event_log_storage.set_concurrency_slots(POOL, 1)
    run_id = fleet.launch("pooled")
    until(lambda: fleet.running(run_id), "a shard runs")
    assert fleet.instance.run_launcher.terminate(run_id)
    assert fleet.await_end(run_id) is Status.CANCELED
    until(
        lambda: not fleet.instance.event_log_storage.get_concurrency_info(POOL).active_slot_count,
        "its slots are free",
    )
    assert fleet.await_end(fleet.launch("pooled")) is Status.SUCCESS


def test_a_long_run_does_not_hold_a_short_one_up(fleet: FleetProcesses) -> None:
    long_run = fleet.launch("long")
    until(lambda: len(fleet.shards(long_run, Event.STEP_START)) >= 2, "the long one has begun")
    short_run = fleet.launch("short")
    assert fleet.await_end(short_run) is Status.SUCCESS
    assert fleet.await_end(long_run) is Status.SUCCESS
    assert_complete(fleet, long_run, 12)
    ((short_start, _),) = spans(fleet, short_run)
    queued = planned_at(fleet, short_run)
    before = sum(queued < start < short_start for start, _ in spans(fleet, long_run))
    assert before <= 3, "each of the workers may have taken one more meanwhile, and no other"


def test_dagster_sees_how_the_workers_of_runs_are(fleet: FleetProcesses) -> None:
    launcher = fleet.instance.run_launcher
    run = fleet.create("slow")
    assert launcher.check_run_worker_health(run).status is Health.FAILED
    fleet.hand_over(run)
    until(lambda: fleet.running(run.run_id), "shards run")
    health = launcher.check_run_worker_health(run)
    assert (health.status, health.run_worker_id) == (Health.RUNNING, "r4")
    assert launcher.terminate(run.run_id)
    assert fleet.await_end(run.run_id) is Status.CANCELED
    until(lambda: not fleet.tickets(run.run_id), "nothing is left of it")


def test_a_run_of_another_process_uses_the_fleet_and_leaves_nothing(fleet: FleetProcesses) -> None:
    run_id = fleet.execute_here("quick")
    assert_complete(fleet, run_id, 2)
    client = fleet.engine.client
    left = [str(each) for each in client.scan_iter(f"*{run_id}*")]
    assert [each for each in left if client.ttl(each) == -1] == [], "what is left expires"


def planned_at(fleet: FleetProcesses, run_id: str) -> float:
    """When the shards of a run were known, from its log."""
    return next(
        each.timestamp
        for each in fleet.entries(run_id)
        if each.dagster_event is not None
        and each.dagster_event.event_type is Event.STEP_SUCCESS
        and "run_shard" not in str(each.step_key)
    )


def spans(fleet: FleetProcesses, run_id: str) -> list[tuple[float, float]]:
    """When the shards of a run ran, from its log."""
    starts: dict[str, float] = {}
    found: list[tuple[float, float]] = []
    for entry in fleet.entries(run_id):
        event, step = entry.dagster_event, str(entry.step_key)
        if event is None or "run_shard[" not in step:
            continue
        if event.event_type is Event.STEP_START:
            starts[step] = entry.timestamp
        elif event.event_type is Event.STEP_SUCCESS:
            found.append((starts[step], entry.timestamp))
    return found


def overlaps(times: list[tuple[float, float]]) -> int:
    """How many of the spans begin before the one before them ends."""
    ordered = sorted(times)
    return sum(second[0] < first[1] for first, second in pairwise(ordered))
