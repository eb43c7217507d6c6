"""Figures in trackers' own storage: MLflow on SQLite, W&B offline, TensorBoard's files."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

mlflow = pytest.importorskip("mlflow")
pytest.importorskip("wandb")
pytest.importorskip("tensorboard")

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TransientError
from mloc_dagster.local_run import RunOutcome, run_template
from mloc_dagster.results import Folder, open_store
from mloc_dagster.settings import settings
from tests.e2e.test_training import kill_at, spec_of, train
from tests.ports import free_port
from tests.tracked_runs import read_scalars, read_wandb

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

KEY = "0123456789abcdef0123456789abcdef01234567"
EVERY = ["mlflow", "tensorboard", "wandb"]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_PROJECT", "proofs")


def the_run(tmp_path: Path) -> Any:
    """The only run that MLflow has."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return run


def history(tmp_path: Path, run: Any, name: str) -> list[tuple[int, float]]:
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    return [(e.step, e.value) for e in client.get_metric_history(run.info.run_id, name)]


def no_file_holds_the_key(folder: Path) -> None:
    files = [each for each in folder.rglob("*") if each.is_file()]
    assert [each for each in files if KEY.encode() in each.read_bytes()] == []


def run_scored(instance: dg.DagsterInstance, workflow: str | None = None) -> RunOutcome:
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "words", "labels": {"team": "red"}},
            "spec": {
                "taskType": "echo",
                "data": {"type": "list", "items": ["one", "two words"]},
                "evaluation": {
                    "metrics": [
                        {"type": "regex", "name": "brief", "pattern": r"^\S+$", "pass_at": [1]}
                    ],
                    "report_to": EVERY,
                },
            },
        }
    )
    return run_template(compiled, instance, workflow_id=workflow)


def scored(instance: dg.DagsterInstance, workflow: str | None = None) -> RunOutcome:
    outcome = run_scored(instance, workflow)
    assert outcome.succeeded, outcome.failures
    return outcome


def log_of(task_id: str) -> str:
    return open_store().task(task_id).read_bytes("logs/shard-0000.log").decode()


def test_scores_are_in_every_tracker_once(
    tmp_path: Path, session_instance: dg.DagsterInstance
) -> None:
    (task,) = scored(session_instance).tasks
    scored(session_instance, workflow=task.task_id)  # aggregates again
    folder = tmp_path / "results" / task.task_id

    run = the_run(tmp_path)
    assert run.info.run_name == "words"
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "echo"
    assert run.data.params["dataset"]
    told = {name: run.data.tags[f"mloc.{name}"] for name in ("task_id", "template", "label.team")}
    assert told == {"task_id": task.task_id, "template": "words", "label.team": "red"}
    assert run.data.tags["mloc.responses"] == f"{folder}/responses.parquet"
    assert history(tmp_path, run, "evaluation/brief") == [(0, 0.5)]
    assert history(tmp_path, run, "evaluation/brief/pass_1") == [(0, 0.5)]

    (file,) = (folder / "logs" / "wandb").rglob("*.wandb")
    offline = read_wandb(file)
    assert (offline.run_id, offline.name, offline.project) == (task.task_id, "words", "proofs")
    assert offline.config["mloc"]["responses"] == f"{folder}/responses.parquet"
    assert offline.summary["evaluation/brief"] == 0.5

    curves = read_scalars(folder / "logs" / "tensorboard" / "evaluation")
    assert curves == {"evaluation/brief": [(0, 0.5)], "evaluation/brief/pass@1": [(0, 0.5)]}
    no_file_holds_the_key(tmp_path)


def test_a_package_that_is_missing_is_told_before_anything_is_computed(
    tmp_path: Path, session_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *more: None if name == "wandb" else found(name, *more),
    )
    outcome = run_scored(session_instance)
    assert not outcome.succeeded
    assert "evaluation.report_to: wandb needs the extra 'tracking'" in outcome.failures[0]
    assert not list(tmp_path.rglob("shards"))


def test_a_tracker_that_is_away_is_a_warning(
    session_instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{KEY}@{address}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    (task,) = scored(session_instance).tasks
    assert "mlflow did not get the figures: MlflowException" in log_of(task.task_id)
    assert "tensorboard has the figures" in log_of(task.task_id)
    assert KEY not in log_of(task.task_id)
    found = session_instance.fetch_materializations(dg.AssetKey(["words", "responses"]), limit=1)
    (event,) = found.records
    assert event.asset_materialization is not None
    shown = event.asset_materialization.metadata
    assert str(shown["report_to/mlflow"].value).startswith("failed: MlflowException")
    assert KEY not in str(shown)


def test_a_training_that_goes_on_has_one_run(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    spec = spec_of("sft", max_steps=9, save_steps=2, report_to=EVERY)
    folder = open_store().task("killed")
    with pytest.raises(TransientError, match="killed by signal 9"):
        train(folder, spec, on_progress=kill_at(step=3))
    steps = range(1, 10)
    logged = train(folder, spec, attempt=2).history
    losses = [(int(each["step"]), each["loss"]) for each in logged if "loss" in each]
    assert [step for step, _ in losses] == list(steps)

    run = the_run(tmp_path)
    assert (run.info.run_name, run.info.status) == ("killed", "FINISHED")
    assert run.data.tags["mloc.task_id"] == "killed"
    assert run.data.params["learning_rate"] == "0.001"
    assert {step for step, _ in history(tmp_path, run, "loss")} == set(steps)

    logs = tmp_path / "results" / "killed" / "logs"
    curve = read_scalars(logs / "tensorboard")["train/loss"]
    assert [step for step, _ in curve] == list(steps)
    assert dict(curve) == pytest.approx(dict(losses))

    runs = [read_wandb(each) for each in logs.rglob("*.wandb")]
    told = [each for each in runs if each.run_id]  # a killed W&B may have written nothing yet
    assert {(each.run_id, each.name, each.project) for each in told} == {
        ("killed", "killed", "proofs")
    }
    seen = {row["train/global_step"] for each in told for row in each.history}
    (resumed,) = re.findall(r"goes on from step (\d+)", log_of("killed"))
    assert seen >= set(range(int(resumed) + 1, 10))
    no_file_holds_the_key(tmp_path)


def test_figures_of_a_training_are_reported_as_it_goes_and_in_the_end(
    tmp_path: Path, session_instance: dg.DagsterInstance
) -> None:
    pytest.importorskip("trl")
    rows = {"rows": [{"prompt": "a", "completion": "b"}]}
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "SFTTask",
            "metadata": {"name": "tune"},
            "spec": {
                "taskType": "sft",
                "enforce_cpu": True,
                "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
                "data": rows,
                "training": {
                    "max_steps": 2,
                    "save_strategy": "no",
                    "report_to": "mlflow",
                    "run_name": "tuned",
                },
                "evaluation": {"data": rows, "every": 1, "report_to": "mlflow"},
            },
        }
    )
    outcome = run_template(compiled, session_instance)
    assert outcome.succeeded, outcome.failures
    (task,) = outcome.tasks
    assert task.training is not None
    run = the_run(tmp_path)
    assert run.info.run_name == "tuned"
    assert [step for step, _ in history(tmp_path, run, "eval_loss")] == [1]
    assert task.training.before is not None
    assert task.training.after is not None
    assert history(tmp_path, run, "evaluation/before/loss") == [(0, task.training.before["loss"])]
    assert history(tmp_path, run, "evaluation/loss") == [(0, task.training.after["loss"])]


def test_a_training_whose_tracker_is_away_ends_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    folder: Folder = open_store().task("away")
    with pytest.raises(TransientError, match="mlflow cannot be reported to: MlflowException"):
        train(folder, spec_of("sft", max_steps=1, report_to="mlflow"))
    assert "memory:" not in folder.read_bytes("logs/shard-0000.log").decode()


def test_without_an_address_runs_are_in_a_database_of_the_home(
    monkeypatch: pytest.MonkeyPatch, session_instance: dg.DagsterInstance
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (task,) = scored(session_instance).tasks
    assert f"sqlite:///{settings().home.absolute()}/mlflow.db" in log_of(task.task_id)
