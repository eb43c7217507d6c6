"""What a training leaves for later stages and other programs."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, datetime

from rich.console import Console

from mloc_dagster.cli.display.report import print_trainings, training_json
from mloc_dagster.local_run import TaskOutcome
from mloc_dagster.ops import judge_training as evaluate
from mloc_dagster.results import (
    Folder,
    TrainingSummary,
    artifact_names,
    open_store,
    read_training,
    write_training,
    write_training_result,
)
from mloc_dagster.schema import LoraTrainingResult

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SUMMARY = TrainingSummary(
    task_id="t",
    task_type="lora_sft",
    model="tiny-chat",
    model_revision="sha256:1",
    source="rows.jsonl train",
    data_version="d" * 64,
    dataset_size=10,
    bad_rows=2,
    steps=4,
    seconds=12.5,
    metrics={"train_loss": 0.75},
    history=({"step": 2, "loss": 1.0}, {"step": 4, "loss": 0.5}, {"step": 4, "eval_loss": 0.4}),
    before={"exact_match": 0.25},
    after={"exact_match": 0.75},
    gate="exact_match 0.75 >= 0.25 + 0.1: passed",
    final="final_lora",
    device="cpu",
    worker="host:1",
    started_at=NOW,
    finished_at=NOW,
)


def folder() -> Folder:
    return open_store(f"memory://{uuid.uuid4().hex}").task("t")


def result_of(place: Folder, archive: str | None) -> dict[str, object]:
    write_training_result(place, SUMMARY, worker_id="w", archive=archive)
    return json.loads(place.read_bytes("responses.json"))["result"]


def test_a_summary_is_read_as_it_was_written() -> None:
    place = folder()
    write_training(place, SUMMARY)
    assert read_training(place) == SUMMARY
    assert SUMMARY.loss == 0.5
    assert SUMMARY.series("loss") == [(2, 1.0), (4, 0.5)]


def test_the_result_has_the_keys_that_references_are_checked_against() -> None:
    place = folder()
    result = LoraTrainingResult.model_validate(result_of(place, "archives/final_lora.zip"))
    assert result.final_lora_path == f"{place.url}/final_lora"
    assert result.final_lora_archive_path == "archives/final_lora.zip"
    assert result.final_lora_archive_url == f"{place.url}/archives/final_lora.zip"
    assert result.metrics["before"] == {"exact_match": 0.25}
    assert result.final_model_path is None


def test_an_archive_on_a_local_disk_has_an_address(tmp_path: object) -> None:
    place = open_store(str(tmp_path)).task("t")
    result = result_of(place, "archives/final_lora.zip")
    assert result["final_lora_archive_url"] == f"file://{place.url}/archives/final_lora.zip"
    assert "final_lora_archive_url" not in result_of(place, None)


def test_older_templates_find_their_trained_model() -> None:
    asked = ("responses.json", "trained_model/", "logs")
    assert artifact_names(asked, SUMMARY) == ("responses.json", "final_lora", "logs")


def test_checks_judge_weights_and_gate() -> None:
    good = evaluate(SUMMARY, kept=True)
    assert all(each.passed for each in good.values())
    assert good["gate"].metadata["after/exact_match"] == 0.75
    lacking = evaluate(SUMMARY, kept=False)["weights"]
    assert lacking.problem == "the final weights are not there"
    refused = SUMMARY.model_copy(update={"passed": False, "gate": "loss 3 < 2: failed"})
    said = evaluate(refused, kept=True)["gate"].problem
    assert said == "the model did not pass its gate: loss 3 < 2: failed"


def test_the_terminal_shows_before_and_after() -> None:
    out = io.StringIO()
    outcome = TaskOutcome("t", "tune", "results/t", None, SUMMARY)
    print_trainings([outcome], Console(file=out, width=100))
    shown = out.getvalue()
    assert "lora_sft" in shown
    assert "bad rows" in shown
    (line,) = [line for line in shown.splitlines() if "exact_match" in line and ">=" not in line]
    assert line.split() == ["tune", "exact_match", "0.25", "0.75"]
    assert "passed" in shown
    assert training_json(SUMMARY)["steps"] == 4
