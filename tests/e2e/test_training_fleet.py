"""An alignment on a fleet whose workers are killed in each of its stages."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
import yaml
from dagster import DagsterEventType as Event, DagsterRunStatus as Status
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from mloc_dagster.events import BEGINNING, Channel, TaskEvent, open_redis, read_events
from mloc_dagster.executors import published_checkpoints
from mloc_dagster.fleet import WorkerInfo, fleet_url
from mloc_dagster.home import postgres_url
from mloc_dagster.results import TrainingSummary, open_store, read_training
from mloc_dagster.settings import settings
from tests.e2e.fleet_processes import RUNS, FleetProcesses
from tests.e2e.stack import ROOT, until
from tests.redis_server import RedisServer

pytest.importorskip("torch")
pytest.importorskip("trl")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

JOB = "align_tiny"
TEMPLATE = ROOT / "templates" / "core" / "align_tiny.yaml"
STEPS = {"sft": 60, "reward": 60, "ppo": 12}
"""Each stage takes two to four seconds: long enough to be met in its middle.

DPO's part of the alignment is left out: it would be killed as SFT is, and what it resumes to is
tested where trainers are.
"""

CHECKPOINTS = 6
"""Of a stage, evenly spread."""

PATIENCE_S = 600.0

LEFT_OUT = ("_runtime", "_per_second")
"""Figures that a killed training has others of: its time."""

NAMES = {"redis": "/6", "postgres": "training_fleet"}
"""Databases that no other test uses."""


def reduced_alignment() -> str:
    """The shipped alignment with fewer steps and rows, and with checkpoints."""
    # Through JSON: what the YAML shares by an anchor is changed in one place only.
    document = json.loads(json.dumps(yaml.safe_load(TEMPLATE.read_text())))
    stages = [each for each in document["spec"]["stages"] if each["name"] in STEPS]
    for stage in stages:
        spec, steps = stage["spec"], STEPS[stage["name"]]
        spec["data"]["dataset_name"] = str(TEMPLATE.parent / spec["data"]["dataset_name"])
        training = {"logging_steps": 1, "save_steps": steps // CHECKPOINTS, "max_steps": steps}
        spec["training"] |= training
        if "evaluation" in spec:
            data = spec["evaluation"]["data"]
            data["dataset_name"] = str(TEMPLATE.parent / data["dataset_name"])
            data["max_samples"] = 8
            spec["evaluation"].pop("gate", None)  # so short a training need not be good
    document["spec"]["stages"] = stages
    return yaml.safe_dump(document)


@pytest.fixture
def fleet(
    redis_server: RedisServer,
    session_instance: dg.DagsterInstance,
    session_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FleetProcesses]:
    """A run worker and two others, with a library of one template."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        folder = Path(name)
        monkeypatch.setenv("MLOC_HOME", str(session_home))
        settings.cache_clear()
        server = make_url(postgres_url())
        admin = create_engine(server, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {NAMES['postgres']} WITH (FORCE)"))
            connection.execute(text(f"CREATE DATABASE {NAMES['postgres']}"))
        admin.dispose()
        for each in ("home", "templates"):
            (folder / each).mkdir()
        (folder / "templates" / "align.yaml").write_text(reduced_alignment())
        database = server.set(database=NAMES["postgres"])
        environment = {
            "MLOC_HOME": str(folder / "home"),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "MLOC_TEMPLATES_DIR": str(folder / "templates"),
            "MLOC_REDIS_URL": redis_server.url.removesuffix("/0") + NAMES["redis"],
            "MLOC_POSTGRES_URL": database.render_as_string(False),
            "MLOC_LEASE_TTL_S": "2",
        }
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        settings.cache_clear()
        fleet = FleetProcesses(folder / "home", environment)
        fleet.engine.client.flushdb()
        try:
            fleet.start("runs", RUNS)
            fleet.start("w1")
            fleet.start("w2")
            fleet.await_workers("runs", "w1", "w2")
            yield fleet
        finally:
            fleet.close()


def test_a_worker_killed_in_each_stage_changes_no_figure(fleet: FleetProcesses) -> None:
    undisturbed = fleet.launch(JOB)
    assert fleet.await_end(undisturbed, PATIENCE_S) is Status.SUCCESS, fleet.text(undisturbed)

    disturbed = fleet.launch(JOB)
    spare = iter(("w3", "w4"))
    killed: dict[str, WorkerInfo] = {}
    left: list[psutil.Process] = []
    while len(killed) < len(STEPS):
        waiting = STEPS.keys() - killed.keys()
        find = in_mid_training(fleet, disturbed, waiting)
        found = until(find, f"one of {waiting} is in its middle", PATIENCE_S)
        assert found is not None
        stage, worker = found
        left += psutil.Process(worker.pid).children(recursive=True)
        fleet.kill(worker.worker_id)
        killed[stage] = worker
        for name in spare:
            fleet.start(name)
            break
    assert fleet.await_end(disturbed, PATIENCE_S) is Status.SUCCESS, fleet.text(disturbed)

    assert left
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == [], "processes of a killed training"
    assert fleet.steps(disturbed, Event.STEP_UP_FOR_RETRY) == []
    told = fleet.text(disturbed)
    for stage, worker in killed.items():
        assert f"worker {worker.worker_id} fell silent; the shard goes to another worker" in told
        before, after = summary_of(undisturbed, stage), summary_of(disturbed, stage)
        assert before.resumed_step == 0
        assert STEPS[stage] > after.resumed_step > 0
        assert after.worker != f"{worker.host}:{worker.pid}"
        assert figures(after) == pytest.approx(figures(before), rel=1e-6), stage


def in_mid_training(
    fleet: FleetProcesses, run_id: str, stages: Collection[str]
) -> Callable[[], tuple[str, WorkerInfo] | None]:
    """Returns what finds a stage that has left a checkpoint and goes on, and its worker."""

    def find() -> tuple[str, WorkerInfo] | None:
        steps, workers = steps_told(fleet, run_id), fleet.engine.workers()
        for ticket, name in fleet.running(run_id).items():
            for stage in stages:
                task_id = f"{run_id}-{stage}"
                in_its_middle = 0 < steps.get(task_id, 0) < STEPS[stage]
                if f"__{stage}." not in ticket or not in_its_middle:
                    continue
                if published_checkpoints(open_store().task(task_id)):
                    return stage, next(each for each in workers if each.worker_id == name)
        return None

    return find


def steps_told(fleet: FleetProcesses, run_id: str) -> dict[str, int]:
    """The step that each training of a run was at when it last said so."""
    with open_redis(fleet_url()) as client:
        found = read_events(client, {Channel.TASKS: BEGINNING}, limit=100_000)
    return {
        each.event.task_id: each.event.payload.training.step
        for each in found
        if isinstance(each.event, TaskEvent)
        and each.event.run_id == run_id
        and each.event.payload.training is not None
    }


def summary_of(run_id: str, stage: str) -> TrainingSummary:
    return read_training(open_store().task(f"{run_id}-{stage}"))


def figures(summary: TrainingSummary) -> dict[str, float]:
    """Everything that a training measured and logged, but for how long it took."""
    found = {f"{entry['step']:g}/{n}": v for entry in summary.history for n, v in entry.items()}
    closing = {"final": summary.metrics, "before": summary.before, "after": summary.after}
    for when, metrics in closing.items():
        found |= {f"{when}/{name}": value for name, value in (metrics or {}).items()}
    assert summary.steps == STEPS[summary.task_type]
    return {n: v for n, v in found.items() if not n.endswith(LEFT_OUT)}
