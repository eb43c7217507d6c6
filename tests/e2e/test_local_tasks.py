"""Tasks of `mloc run` and of Dagster, which no API accepted, as the commands show them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import pytest

from mloc_dagster.cli import entry
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

SLOW = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: slow, owner: OWNER, labels: {team: "a, b", kind: x=y}}
spec:
  taskType: echo
  echo: {delay_s: 60}
  data: {type: list, items: [one, two]}
"""
STAGES = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: staged, owner: OWNER}
spec:
  taskType: echo
  stages:
    - name: draft
      spec: {data: {type: list, items: [one, two]}}
    - name: refine
      spec: {data: {type: upstream, node: draft, text: "{output} again"}}
"""


Mloc = Callable[..., str]


@pytest.fixture
def mloc(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Mloc:
    """The command line, where no API answers and no Redis is known."""
    for name in ("MLOC_API_URL", "MLOC_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()

    def run(*arguments: str, code: int = 0) -> str:
        found = entry.run(arguments)
        out, err = capsys.readouterr()
        assert found == code, out + err
        return out if code == 0 else out + err

    return run


def written(text: str, folder: Path) -> tuple[str, str]:
    """Writes a template; returns its path and its owner, which no other test has."""
    owner = folder.name
    path = folder / "mine.yaml"
    path.write_text(text.replace("OWNER", owner))
    return str(path), owner


def test_tasks_of_mloc_run_are_listed_shown_and_read(mloc: Mloc, tmp_path: Path) -> None:
    path, owner = written(STAGES, tmp_path)
    mloc("run", path, "-q")
    refine, draft = json.loads(mloc("list", "--owner", owner, "--json"))
    assert [each["node"] for each in (draft, refine)] == ["draft", "refine"]
    assert {each["origin"] for each in (draft, refine)} == {"run"}
    assert {each["task_type"] for each in (draft, refine)} == {"echo"}
    assert refine["depends_on"] == ["draft"]
    assert (refine["status"], refine["rows_finished"]) == ("DONE", 2)
    assert f"{refine['task_id']}   staged     run      DONE" in mloc("list", "--owner", owner)
    assert json.loads(mloc("list", "--owner", owner, "--origin", "api", "--json")) == []

    shown = mloc("show", refine["task_id"])
    assert "status    DONE" in shown
    assert "rows      2 of 2" in shown
    both = json.loads(mloc("show", refine["workflow_id"], "--json"))
    assert [each["node"] for each in both["tasks"]] == ["draft", "refine"]
    assert "one again" in mloc("result", refine["task_id"])
    assert "Started execution of run" in mloc("logs", refine["task_id"])

    assert "has ended already (DONE)" in mloc("cancel", refine["task_id"], code=2)
    assert "is done: there is nothing to retry" in mloc("retry", refine["task_id"], code=2)
    assert "did you mean" in mloc("show", refine["task_id"] + "x", code=2)


SCORED = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: scored, owner: OWNER}
spec:
  taskType: echo
  data: {type: dataset, url: ./rows.jsonl, column: question}
  evaluation: {reference: answer, metrics: [exact_match], gate: exact_match >= 0.9}
"""


def test_scores_are_shown_and_a_gate_that_refused_is_not_resumed(
    mloc: Mloc, tmp_path: Path
) -> None:
    path, owner = written(SCORED, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": said, "answer": "a"}) + "\n" for said in "aab"))
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", path]
    refused = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert refused.returncode == 1
    assert "did not pass its gate: exact_match 0.666667 >= 0.9: failed" in refused.stderr
    assert "--resume" not in refused.stderr
    rows.write_text(rows.read_text().replace('"b"', '"a"'))
    mloc("run", path, "-q")
    done, _ = json.loads(mloc("list", "--owner", owner, "--json"))
    assert "scores    exact_match 1" in mloc("show", done["task_id"])
    (shown,) = json.loads(mloc("show", done["task_id"], "--json"))["tasks"]
    assert shown["metrics"] == {"exact_match": 1.0}


def test_a_run_whose_process_was_killed_is_cancelled_and_goes_on(
    mloc: Mloc, tmp_path: Path
) -> None:
    path, owner = written(SLOW, tmp_path)
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", path]
    with subprocess.Popen(command, cwd=tmp_path, env=dict(os.environ)) as process:
        try:
            while not (running := json.loads(mloc("list", "--owner", owner, "--json"))):
                assert process.poll() is None
            (task,) = running
            assert (task["origin"], task["labels"]) == ("run", {"team": "a, b", "kind": "x=y"})
            assert not TaskState(task["status"]).ended
            assert "belongs to an `mloc run`" in mloc("cancel", task["task_id"], code=2)
        finally:
            process.send_signal(signal.SIGKILL)
    (task,) = json.loads(mloc("list", "--owner", owner, "--json"))
    assert task["status"] == "CANCELLED"
    assert "mloc run --resume" in mloc("retry", task["task_id"], code=2)


def test_a_job_of_dagster_is_found(mloc: Mloc, tmp_path: Path) -> None:
    job = ["dagster", "job", "execute", "-m", "mloc_dagster.definitions", "-j", "echo"]
    subprocess.run(
        [sys.executable, "-m", *job],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=dict(os.environ),
    )
    latest, *_ = json.loads(mloc("list", "--origin", "dagster", "--name", "echo", "--json"))
    assert (latest["status"], latest["template"]) == ("DONE", "echo")
    assert "hello" in mloc("result", latest["task_id"])


def test_where_nothing_was_run_is_said(
    mloc: Mloc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "empty"))
    settings.cache_clear()
    assert "nothing was run in" in mloc("list", code=2)
    assert not (tmp_path / "empty").exists()


def test_results_elsewhere_are_read_there(
    mloc: Mloc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And tasks of the own store that ended before are listed all the same."""
    path, owner = written(STAGES, tmp_path)

    def at_home() -> None:
        monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
        settings.cache_clear()

    mloc("run", path, "-q")
    mloc("run", path, "-q", "--results", str(tmp_path / "elsewhere"))
    at_home()  # another process, which was told nothing
    (refine,) = (each.name for each in (tmp_path / "elsewhere").glob("*-refine"))
    assert "one again" in mloc("result", refine)
    at_home()
    assert json.loads(mloc("show", refine, "--json"))["tasks"][0]["rows"] == 2
    at_home()
    assert refine in mloc("logs", refine)
    at_home()
    assert len(json.loads(mloc("list", "--owner", owner, "--json"))) == 4
