"""`mloc estimate`, before and after the first task of its kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TINY = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: tiny}
spec:
  taskType: inference
  resources: {cost_per_hour: 3600}
  slo: {seconds: 1000}
  model: {engine: transformers, source: {type: builtin, identifier: tiny-chat}}
  inference: {temperature: 0, max_tokens: 12}
  stages:
    - name: ask
      spec:
        data: {type: list, items: [What is the capital of France?, What is 2 plus 2?]}
    - name: again
"""
ESTIMATE = """\
import sys
from mloc_dagster.cli import entry
code = entry.run(sys.argv[1:])
heavy = {"torch", "transformers", "vllm"} & set(sys.modules)
sys.exit(code if not heavy else f"imported {heavy}")
"""


class Place:
    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "OMP_NUM_THREADS": "1",
        }

    def __call__(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command], cwd=self.folder, env=self.environment, text=True,
            capture_output=True, timeout=900, check=False,
        )  # fmt: skip

    def estimate(self, *options: str) -> dict[str, Any]:
        done = self("-c", ESTIMATE, "estimate", "tiny.yaml", "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def place(tmp_path: Path, session_home: Path, session_instance: dg.DagsterInstance) -> Place:
    (tmp_path / "tiny.yaml").write_text(TINY)
    return Place(tmp_path, session_home)


def test_an_estimate_learns_from_what_ran(place: Place) -> None:
    ask, again = place.estimate()["tasks"]
    assert (ask["rows"]["value"], ask["output_tokens"]["value"]) == (2, 24)
    assert ask["output_tokens"]["at_most"] is True
    assert ask["seconds"]["value"] is None
    assert ask["fits_slo"] is None
    assert again["rows"] == {
        "value": None,
        "source": "its rows are known when ask is done",
        "at_most": False,
    }

    done = place("-m", "mloc_dagster.cli", "run", "tiny.yaml", "--json")
    assert done.returncode == 0, done.stderr
    took = json.loads(done.stdout)["tasks"][0]

    document = place.estimate()
    ask = document["tasks"][0]
    assert "earlier tasks of tiny-chat on transformers" in ask["output_tokens"]["source"]
    assert 0 < ask["output_tokens"]["value"] <= 24
    assert 0 < ask["prompt_tokens"]["value"] <= took["prompt_tokens"]
    assert ask["cost"]["value"] == pytest.approx(ask["engine_seconds"]["value"])
    assert 0 < ask["engine_seconds"]["value"] <= ask["seconds"]["value"]
    assert ask["fits_slo"] is True
    assert document["total"]["rows"]["source"] == "1 of 2 tasks"
    assert place.estimate("--set", "spec.slo.seconds=0.001")["tasks"][0]["fits_slo"] is False

    shown = place("-m", "mloc_dagster.cli", "estimate", "tiny.yaml")
    assert shown.returncode == 0
    assert "ask: SLO of 16:40: fits" in shown.stdout.splitlines()
    assert "again: SLO of 16:40: not known" in shown.stdout.splitlines()


def test_a_bad_template_is_told_as_by_validate(place: Place) -> None:
    (place.folder / "bad.yaml").write_text(TINY.replace("max_tokens", "max_token"))
    done = place("-m", "mloc_dagster.cli", "estimate", "bad.yaml")
    validated = place("-m", "mloc_dagster.cli", "validate", "bad.yaml")
    assert done.returncode == validated.returncode == 2
    assert done.stderr.splitlines()[0] in validated.stdout.splitlines()
