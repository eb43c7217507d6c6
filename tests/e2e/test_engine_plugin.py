"""An engine of another distribution, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from tests.unit.executors.test_engines import TEMPLATE, lay_down

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Place:
    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "PYTHONPATH": str(folder / "plugin"),
        }

    def mloc(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "mloc_dagster.cli", *command], cwd=self.folder,
            env=self.environment, text=True, capture_output=True, timeout=900, check=False,
        )  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, session_home: Path, session_instance: dg.DagsterInstance) -> Place:
    (tmp_path / "plugin").mkdir()
    lay_down(tmp_path / "plugin")
    return Place(tmp_path, session_home)


def test_a_template_runs_on_it_and_a_wrong_option_is_named(place: Place) -> None:
    (place.folder / "t.yaml").write_text(TEMPLATE + "    engine: mirror\n    mirror: {depth: 2}\n")
    done = place.mloc("run", "t.yaml")
    assert done.returncode == 0, done.stderr
    (responses,) = (place.folder / "results").glob("*/responses.json")
    items = json.loads(responses.read_text())["result"]["items"]
    assert [each["output"] for each in items] == ["cbacba", "eded"]

    wrong = place.mloc("run", "t.yaml", "--set", "spec.model.mirror.dept=3")
    assert wrong.returncode == 2
    assert "unknown key 'dept'; did you mean 'depth'?" in wrong.stderr
    assert "MirrorOptions" in place.mloc("schema").stdout
