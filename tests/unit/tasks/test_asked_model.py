"""Which model a name means, and what it is asked."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import IncompleteResultsError, InputError, UnknownNameError
from mloc_dagster.executors import task_record
from mloc_dagster.results import TrainingSummary, open_store, write_record, write_training
from mloc_dagster.settings import settings
from mloc_dagster.tasks import asked_spec, asked_template, call_rows

CHAT = "/v1/chat/completions"
ASKED = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    settings.cache_clear()
    return tmp_path / "results"


def source(kind: str, identifier: str) -> dict[str, Any]:
    return {"source": {"type": kind, "identifier": identifier}}


def submitted(task_id: str, task_type: str, **spec: Any) -> None:
    """Leaves the record of a task."""
    kind = "TrainingTask" if "training" in spec else "InferenceTask"
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": kind,
            "metadata": {"name": task_id},
            "spec": {"taskType": task_type, "model": source("builtin", "tiny-chat"), **spec},
        }
    )
    record = task_record(task_id, compiled, compiled.tasks[0], task_id, "run", {})
    write_record(open_store().task(task_id), record)


def trained(task_id: str, final: str, task_type: str = "sft", **spec: Any) -> str:
    """Leaves a training that is done; returns where its weights are."""
    rows = {"rows": [{"prompt": "a", "completion": "b"}]}
    submitted(task_id, task_type, data=rows, training={"max_steps": 1}, **spec)
    folder, now = open_store().task(task_id), datetime.now(UTC)
    summary = TrainingSummary(
        task_id=task_id, task_type=task_type, model="tiny-chat", model_revision="", source="",
        data_version="", dataset_size=1, bad_rows=0, steps=1, seconds=1, metrics={}, history=(),
        final=final, device="cpu", worker="w", started_at=now, finished_at=now,
    )  # fmt: skip
    write_training(folder, summary)
    return f"{folder.url}/{final}"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("tiny-chat", source("builtin", "tiny-chat")),
        ("org/name", source("huggingface", "org/name")),
        ("gpt2", source("huggingface", "gpt2")),
        ("./folder", source("local", "./folder")),
    ],
)
def test_a_name_is_of_what_ships_of_the_hub_or_a_folder(name: str, model: object) -> None:
    assert asked_spec(name) == {"taskType": "inference", "model": model}
    assert asked_spec(name, vectors=True) == {"taskType": "embedding", "model": model}


def test_a_template_brings_its_model_its_options_and_its_hardware() -> None:
    spec = asked_spec("gsm8k_single")
    assert isinstance(spec["model"], dict)
    assert isinstance(spec["resources"], dict)
    assert spec["resources"]["hardware"]["gpu"]["count"] == 1  # type: ignore[index, call-overload]
    assert "data" not in spec
    (task,) = compile_mapping(asked_template("gsm8k_single")).tasks
    assert task.task.spec.resources.hardware.gpu.count == 1


def test_a_tasks_id_means_the_model_that_it_asks() -> None:
    submitted("t1", "inference", data={"type": "list", "items": ["a"]}, inference={"max_tokens": 3})
    spec = asked_spec("t1")
    assert spec["model"] == source("builtin", "tiny-chat")
    assert spec["inference"] == {"max_tokens": 3}


def test_a_training_means_what_it_has_made() -> None:
    weights = trained("full", "final_model")
    assert asked_spec("full")["model"] == source("local", weights)
    adapter = trained("lora", "final_lora", "lora_sft")
    lora = asked_spec("lora")["model"]
    assert lora == {**source("builtin", "tiny-chat"), "adapters": [{"path": adapter}]}
    compile_mapping(asked_template("lora"))


def test_an_adapter_stands_on_the_weights_that_it_was_trained_for() -> None:
    weights = trained("full", "final_model")
    load = {"load": {"type": "task", "task_id": "full"}}
    adapter = trained("lora", "final_lora", "lora_sft", checkpoint=load)
    assert asked_spec("lora")["model"] == {
        **source("local", weights),
        "adapters": [{"path": adapter}],
    }


def test_a_call_takes_no_key_along() -> None:
    where = {"type": "openai", "identifier": "m", "base_url": "https://api.example.org/v1"}
    data = {"type": "list", "items": ["a"]}
    submitted("listed", "inference", model={"source": where}, data=data)
    assert asked_spec("listed")["model"] == {"source": where}
    for number, key in enumerate(("sk-planted-1234", "${KEY}")):
        own = {"source": {**where, "api_key": key}}
        submitted(f"own-{number}", "inference", model=own, data=data)
        with pytest.raises(InputError, match="MLOC_API_ENDPOINTS") as error:
            asked_spec(f"own-{number}")
        assert key not in str(error.value)


def test_what_cannot_be_asked_says_why() -> None:
    submitted("begun", "sft", data={"rows": [{"prompt": "a", "completion": "b"}]}, training={})
    with pytest.raises(IncompleteResultsError, match="not done"):
        asked_spec("begun")
    trained("nothing", "")
    with pytest.raises(InputError, match="kept no weights"):
        asked_spec("nothing")
    with pytest.raises(InputError, match="asks what it trains"):
        asked_spec("align_tiny")
    with pytest.raises(InputError, match="vectors, no text"):
        asked_spec("core/embeddings")
    with pytest.raises(UnknownNameError, match="did you mean 'tiny-chat'"):
        asked_spec("tiny-chit")
    for name in ("what a name", "0" * 400 + "/", "\0"):
        with pytest.raises(UnknownNameError, match="unknown model"):
            asked_spec(name)


def test_a_request_becomes_the_row_that_a_batch_file_would_have() -> None:
    spec: Any = compile_mapping(asked_template("tiny-chat")).tasks[0].task.spec
    (row,) = call_rows(CHAT, {**ASKED, "temperature": 0, "max_tokens": 4}, spec)
    assert row.options is not None
    assert (row.options["temperature"], row.options["max_tokens"]) == (0, 4)
    for wrong, message in (
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "greater than or equal to 0"),
        ({"messages": []}, "at least one message"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ):
        with pytest.raises(InputError, match=message):
            call_rows(CHAT, json.loads(json.dumps({**ASKED, **wrong})), spec)
