"""Trainings in real processes: killed, gone on with, several at once, refused by their gate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TaskCancelled, TerminalError, TransientError
from mloc_dagster.executors import Finished, Progress, plan_training, run_training
from mloc_dagster.local_run import run_template
from mloc_dagster.results import Folder, open_store, read_training
from mloc_dagster.schema import TrainingSpec, find_task_type
from mloc_dagster.settings import settings

pytest.importorskip("torch")
pytest.importorskip("trl")

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = [{"prompt": f"What is {n} + 1?", "completion": f"{n + 1}!"} for n in range(24)]
MODEL = {"source": {"type": "builtin", "identifier": "tiny-chat"}}
SPECS: dict[str, dict[str, Any]] = {
    "sft": {
        "data": {"rows": ROWS, "prompt_column": "prompt", "response_column": "completion"},
        "training": {
            "max_steps": 9,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 3,
            "save_total_limit": 2,
            "learning_rate": 1e-3,
        },
    },
}


def spec_of(task_type: str, **training: object) -> TrainingSpec:
    given = SPECS[task_type]
    return find_task_type(task_type).spec.model_validate(
        {
            "taskType": task_type,
            "enforce_cpu": True,
            "model": MODEL,
            **given,
            "training": {**given["training"], **training},
        }
    )  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    settings.cache_clear()
    yield
    settings.cache_clear()


def train(
    folder: Folder,
    spec: TrainingSpec,
    attempt: int = 1,
    *,
    ranks: int = 1,
    on_progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Finished:
    plan = plan_training(folder, folder.name, spec, {})
    done = run_training(
        *(folder, folder.name, spec, plan.shards[0]),
        attempt=attempt,
        ranks=ranks,
        start_from=None,
        cancelled=cancelled,
        on_progress=on_progress,
    )
    assert done.finished is not None
    return done.finished


def trainers() -> list[psutil.Process]:
    """The processes that train, oldest first: what the fork server has started."""
    # Other tests of the session may have servers of their own, with processes below them.
    servers = [each for each in psutil.Process().children() if "forkserver" in str(each.cmdline())]
    found = [each for server in servers for each in server.children()]
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


def kill_at(step: int, which: int = 0) -> Callable[[Progress], None]:
    killed: list[psutil.Process] = []

    def look(progress: Progress) -> None:
        if progress.step >= step and not killed:
            killed.append(trainers()[which])
            killed[0].kill()

    return look


def test_a_killed_training_goes_on_as_if_nothing_had_happened() -> None:
    store, spec = open_store(), spec_of("sft")
    undisturbed = train(store.task("undisturbed"), spec)
    folder = store.task("killed")
    with pytest.raises(TransientError, match="killed by signal 9"):
        train(folder, spec, on_progress=kill_at(step=5))
    assert folder.list("checkpoints")
    again = train(folder, spec, attempt=2)

    log = folder.read_bytes("logs/shard-0000.log").decode()
    assert "goes on from step" in log
    curves = [
        {each["step"]: each["loss"] for each in run.history if "loss" in each}
        for run in (undisturbed, again)
    ]
    assert len(curves[0]) == again.steps == undisturbed.steps
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert trainers() == []


def test_a_training_whose_checkpoints_are_weights_alone_starts_again() -> None:
    store, spec = open_store(), spec_of("sft", save_only_model=True)
    undisturbed = train(store.task("undisturbed"), spec)
    folder = store.task("weights-only")
    with pytest.raises(TransientError, match="killed by signal 9"):
        train(folder, spec, on_progress=kill_at(step=5))
    again = train(folder, spec, attempt=2)

    assert "goes on from step" not in folder.read_bytes("logs/shard-0000.log").decode()
    assert again.metrics["train_loss"] == pytest.approx(undisturbed.metrics["train_loss"], rel=1e-5)


def test_an_option_that_only_the_first_step_refuses_is_not_tried_again() -> None:
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 4
    spec = find_task_type("dpo").spec.model_validate(
        {
            "taskType": "dpo",
            "enforce_cpu": True,
            "model": MODEL,
            "data": {"rows": pairs},
            "training": {"max_steps": 1, "loss_type": "banana"},
        }
    )
    with pytest.raises(TerminalError, match="Unknown loss type: banana"):
        train(open_store().task("banana"), spec)  # type: ignore[arg-type]


def test_processes_train_together_and_end_together() -> None:
    folder, spec = open_store().task("together"), spec_of("sft", save_strategy="no")
    done = train(folder, spec, ranks=2)
    assert done.steps == 9
    assert folder.exists("final_model/model.safetensors")
    with pytest.raises(TransientError, match="process 2 of 2 was killed by signal 9"):
        train(open_store().task("halved"), spec, ranks=2, on_progress=kill_at(step=2, which=1))
    assert trainers() == []


def test_a_cancelled_training_keeps_its_checkpoints_and_leaves_no_process() -> None:
    folder, spec = open_store().task("cancelled"), spec_of("sft", max_steps=500)
    seen: list[int] = []
    with pytest.raises(TaskCancelled):
        train(
            folder,
            spec,
            on_progress=lambda each: seen.append(each.step),
            cancelled=lambda: bool(seen) and seen[-1] >= 7,
        )
    assert folder.list("checkpoints")
    assert trainers() == []


WORKER = """
import sys
from tests.e2e.test_training import spec_of, train
from mloc_dagster.results.store import open_store
train(open_store().task("orphaned"), spec_of("sft", max_steps=100_000),
      on_progress=lambda each: print(each.step, flush=True))
"""


def test_a_training_ends_with_the_worker_that_started_it() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdout=subprocess.PIPE, env=os.environ.copy()
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline(), "it makes a step"
        left = psutil.Process(worker.pid).children(recursive=True)
        assert left
        worker.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(left, timeout=30)
        assert alive == []


def test_a_model_that_its_gate_refuses_is_not_handed_on(instance: dg.DagsterInstance) -> None:
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "SFTTask",
            "metadata": {"name": "gated"},
            "spec": {
                "enforce_cpu": True,
                "model": MODEL,
                "stages": [
                    {
                        "name": "tune",
                        "spec": {
                            **SPECS["sft"],
                            "evaluation": {
                                "data": SPECS["sft"]["data"],
                                "metrics": ["exact_match"],
                                "gate": "exact_match >= before + 2",
                            },
                        },
                    },
                    {
                        "name": "ask",
                        "spec": {
                            "taskType": "inference",
                            "model": {
                                "source": {
                                    "type": "local",
                                    "identifier": "${tune.result.final_model_path}",
                                }
                            },
                            "data": {"type": "list", "items": ["What is 1 + 1?"]},
                        },
                    },
                ],
            },
        }
    )
    outcome = run_template(compiled, instance)
    assert not outcome.succeeded
    assert outcome.failures[0].startswith("the model did not pass its gate: exact_match ")
    (tune,) = outcome.tasks
    assert tune.training is not None
    assert tune.training.passed is False
    assert "+ 2" in tune.training.gate
    assert read_training(open_store().task(tune.task_id)).final == "final_model"


def test_stages_hand_weights_on_through_s3(
    instance: dg.DagsterInstance, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_RESULTS_URL", s3_url)
    settings.cache_clear()
    tuned = {"source": {"type": "local", "identifier": "${tune.result.final_model_path}"}}
    load = {"load": {"type": "local", "path": "${tune.result.final_model_path}"}}
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "SFTTask",
            "metadata": {"name": "remote"},
            "spec": {
                "enforce_cpu": True,
                "model": MODEL,
                "stages": [
                    {"name": "tune", "spec": {**SPECS["sft"], "taskType": "sft"}},
                    {
                        "name": "adapt",
                        "spec": {**SPECS["sft"], "taskType": "lora_sft", "checkpoint": load},
                    },
                    {
                        "name": "ask",
                        "dependsOn": ["tune"],
                        "spec": {
                            "taskType": "inference",
                            "model": tuned,
                            "data": {"type": "list", "items": ["What is 1 + 1?"]},
                            "inference": {"temperature": 0, "max_tokens": 4},
                        },
                    },
                ],
            },
        }
    )
    outcome = run_template(compiled, instance)
    assert outcome.succeeded, outcome.failures
    ids = {each.node: each.task_id for each in outcome.tasks}
    store = open_store()
    assert store.url == s3_url
    assert store.task(ids["adapt"]).exists("final_lora/adapter_model.safetensors")
    assert store.task(ids["adapt"]).list("checkpoints")
    answers = json.loads(store.task(ids["ask"]).read_bytes("responses.json"))
    assert answers["result"]["items"][0]["output"]
