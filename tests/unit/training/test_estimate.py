"""What a training is going to take, worked out from what earlier ones left."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from mloc_dagster.cli.estimate_command import estimate
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.errors import DataError
from mloc_dagster.executors.estimate import TrainingEstimate
from mloc_dagster.local_run import TaskEstimate, estimate_template
from mloc_dagster.results import ResultStore, TrainingSummary, open_store, write_training

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = [{"text": f"row {number}"} for number in range(20)]
TRAINING = {"num_train_epochs": 2, "per_device_train_batch_size": 4}


@pytest.fixture
def store() -> ResultStore:
    return open_store(f"memory://{uuid.uuid4().hex}")


def template(*stages: dict[str, Any], **spec: Any) -> CompiledTemplate:
    source = {"type": "builtin", "identifier": "tiny-chat"}
    whole: dict[str, Any] = {
        "model": {"source": source},
        "data": {"rows": ROWS},
        "training": TRAINING,
        "enforce_cpu": True,
        **spec,
        **({"stages": list(stages)} if stages else {"taskType": "sft"}),
    }
    return compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "TrainingTask",
            "metadata": {"name": "taught"},
            "spec": whole,
        }
    )


def remember(store: ResultStore, **changes: Any) -> None:
    """Writes an earlier training: 10 steps of 4 rows and 2 seconds, and 5 seconds besides."""
    task_id = str(uuid.uuid4())
    summary = TrainingSummary(
        task_id=task_id,
        task_type="sft",
        model="tiny-chat",
        model_revision="",
        source="rows",
        data_version="d" * 64,
        dataset_size=20,
        bad_rows=0,
        steps=10,
        seconds=25.0,
        metrics={"train_runtime": 20.0, "epoch": 2.0},
        history=(),
        final="final_model",
        device="cpu",
        worker="w",
        started_at=NOW,
        finished_at=NOW,
    )
    write_training(store.task(task_id), summary.model_copy(update=changes))


def estimated(
    store: ResultStore, *stages: dict[str, Any], **spec: Any
) -> dict[str, TrainingEstimate]:
    found: dict[str, TrainingEstimate] = {}
    for each in estimate_template(template(*stages, **spec), store):
        assert isinstance(each.estimate, TrainingEstimate)
        found[each.task] = each.estimate
    return found


def only(store: ResultStore, **spec: Any) -> TrainingEstimate:
    return estimated(store, **spec)["taught"]


def test_rows_and_steps_are_counted_and_time_is_not_guessed(store: ResultStore) -> None:
    found = only(store)
    assert (found.rows.value, found.steps.value) == (20, 10)
    assert found.memory_bytes.value is not None
    assert "480,128 weights" in found.memory_bytes.source
    assert found.seconds.value is None
    assert found.seconds.source == "no figures yet: no earlier sft of tiny-chat"


def test_earlier_trainings_tell_the_time_of_a_step(store: ResultStore) -> None:
    remember(store)
    remember(store, metrics={"train_runtime": 40.0, "epoch": 2.0}, seconds=45.0)
    remember(store, metrics={"train_runtime": 30.0, "epoch": 2.0}, seconds=35.0)
    found = only(store, training={**TRAINING, "num_train_epochs": 4})
    assert found.engine_seconds.value == pytest.approx(20 * 3)
    assert found.seconds.value == pytest.approx(20 * 3 + 5)
    assert found.seconds.source == "from 3 earlier sft of tiny-chat on cpu: 3 s a step"


def test_steps_of_another_size_are_scaled_and_said_to_be(store: ResultStore) -> None:
    remember(store)
    found = only(store, training={**TRAINING, "per_device_train_batch_size": 10})
    assert found.steps.value == 4
    assert found.engine_seconds.value == pytest.approx(4 * 5)
    assert found.seconds.source.endswith("5 s a step, scaled by the rows of a step")


@pytest.mark.parametrize(
    "changes",
    [
        {"task_type": "dpo"},
        {"model": "another"},
        {"device": "cuda:0"},
        {"resumed_step": 6},
        {"final": "final_lora"},
        {"steps": 0},
    ],
)
def test_trainings_of_another_kind_tell_nothing(
    store: ResultStore, changes: dict[str, Any]
) -> None:
    remember(store, **changes)
    assert only(store).seconds.value is None


def test_a_price_makes_a_cost(store: ResultStore) -> None:
    remember(store)
    found = only(store, resources={"cost_per_hour": 3600})
    assert found.cost.value == pytest.approx(20)


def test_a_trained_model_is_as_large_as_the_one_it_came_from(store: ResultStore) -> None:
    remember(store)
    first = {"name": "first", "spec": {"taskType": "sft"}}
    source = {"type": "local", "identifier": "${first.result.final_model_path}"}
    then = {
        "name": "then",
        "dependsOn": ["first"],
        "spec": {"taskType": "sft", "model": {"source": source}},
    }
    found = estimated(store, first, then)
    assert found["then"].memory_bytes == found["first"].memory_bytes
    assert found["first"].seconds.value is not None
    assert found["then"].seconds.source == "no figures yet: its model is the result of first"


def test_input_without_rows_is_told(store: ResultStore, tmp_path: Any) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": ""}) + "\n")
    with pytest.raises(DataError, match="1 of 1 rows"):
        only(store, data={"dataset_name": str(path), "text_column": "text"})


def test_an_slo_counts_the_trainings_before(store: ResultStore) -> None:
    remember(store)
    first = {"name": "first", "spec": {"taskType": "sft"}}
    then = {"name": "then", "dependsOn": ["first"], "spec": {"taskType": "sft"}}
    _, after = estimate_template(template(first, then, slo={"seconds": 40}), store)
    assert isinstance(after, TaskEstimate)
    assert after.ends_after == pytest.approx(50)
    assert after.fits_slo is False


FILE = """\
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: both}
spec:
  enforce_cpu: true
  model: {source: {type: builtin, identifier: tiny-chat}}
  stages:
    - name: tune
      spec:
        taskType: sft
        data: {rows: [{text: one}, {text: two}, {text: three}]}
        training: {per_device_train_batch_size: 2}
    - name: ask
      dependsOn: [tune]
      spec:
        taskType: inference
        data: {type: list, items: [one, two]}
"""


def test_the_command_shows_trainings_in_a_table_of_their_own(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.yaml"
    path.write_text(FILE)
    assert estimate(str(path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["training", "rows", "steps", "memory", "time", "cost"] in [x.split() for x in lines]
    assert [line.split()[:3] for line in lines if line.startswith("tune ")] == [["tune", "3", "2"]]
    assert "tune: steps: 1 epoch of 2, 2 rows a step" in lines
    assert "tune: time: no figures yet: no earlier sft of tiny-chat" in lines
    assert estimate(str(path), as_json=True) == 0
    document = json.loads(capsys.readouterr().out)
    tune, ask = document["tasks"]
    assert tune["steps"]["value"] == 2
    assert tune["memory_bytes"]["value"] > 1_000_000
    assert "steps" not in ask
    assert document["total"]["rows"]["value"] == 5
    assert document["total"]["steps"]["value"] == 2
    assert "memory_bytes" not in document["total"]
