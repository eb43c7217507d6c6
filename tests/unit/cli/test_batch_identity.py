"""Which task a command of `mloc batch` means: another model or other options, another task."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.cli.batch_files import batch_task_id
from mloc_dagster.compile import compile_mapping
from mloc_dagster.data import BatchFile
from mloc_dagster.errors import InputError


def folder(place: Path, weights: bytes) -> Path:
    place.mkdir()
    (place / "config.json").write_text("{}")
    (place / "model.safetensors").write_bytes(weights)
    return place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder(tmp_path / "model", b"weights")


def task_id(model: Path, *adapters: Path, **inference: Any) -> str:
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "InferenceTask",
            "metadata": {"name": "batch"},
            "spec": {
                "taskType": "inference",
                "model": {
                    "source": {"type": "local", "identifier": str(model)},
                    "adapters": [{"path": str(each)} for each in adapters],
                },
                "data": {"type": "openai_batch", "url": "requests.jsonl"},
                "inference": inference,
            },
        }
    )
    return batch_task_id(compiled, BatchFile(sha256="0" * 64))


def test_equal_commands_mean_the_same_task(model: Path) -> None:
    assert task_id(model) == task_id(model)
    assert task_id(model) != task_id(model, seed=1)


def test_an_adapter_that_was_trained_again_in_its_folder_is_another_one(
    model: Path, tmp_path: Path
) -> None:
    adapter = folder(tmp_path / "adapter", b"first")
    before = task_id(model, adapter)
    (adapter / "model.safetensors").write_bytes(b"again")
    assert task_id(model, adapter) != before


def test_weights_of_the_same_size_and_time_are_other_ones(model: Path) -> None:
    before, weights = task_id(model), model / "model.safetensors"
    times = weights.stat()
    weights.write_bytes(b"WEIGHTS")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert task_id(model) != before


def test_files_that_were_only_touched_or_copied_are_the_same_ones(model: Path) -> None:
    before = task_id(model)
    (model / "model.safetensors").touch()
    assert task_id(model) == before


def test_the_order_of_a_schemas_properties_counts(model: Path) -> None:
    def of(*names: str) -> str:
        schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
        return task_id(model, structured_outputs={"json": schema})

    assert of("reason", "answer") != of("answer", "reason")


def test_a_model_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        task_id(tmp_path / "gone")
