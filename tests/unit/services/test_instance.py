"""What the project's dagster.yaml says, as Dagster reads it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from dagster._core.instance.config import dagster_instance_config
from dagster._core.storage.compute_log_manager import ComputeIOType
from dagster._core.storage.local_compute_log_manager import (
    IO_TYPE_EXTENSION,
    LocalComputeLogManager,
)
from dagster._serdes import ConfigurableClassData

from mloc_dagster.settings import settings

ROOT = Path(__file__).parents[3]


def test_what_steps_print_is_kept_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "elsewhere"))
    settings.cache_clear()
    config, _ = dagster_instance_config(str(ROOT))
    named = config["compute_logs"]
    logs = ConfigurableClassData(named["module"], named["class"], "{}").rehydrate(
        as_type=LocalComputeLogManager
    )
    with logs.capture_logs(["run", "step"]):
        sys.stdout.write("printed")
    assert b"printed" in (logs.get_log_data(["run", "step"]).stdout or b"")
    kept = logs.get_captured_local_path(["run", "step"], IO_TYPE_EXTENSION[ComputeIOType.STDOUT])
    assert Path(kept).is_relative_to(tmp_path / "elsewhere")
