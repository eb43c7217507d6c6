"""Dagster's own commands on the project, as a Dagster user types them."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pytest

from mloc_dagster.results import open_store, read_record, read_rows, verify_manifest
from mloc_dagster.settings import settings
from tests.e2e.conftest import Command

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.e2e

TEMPLATE = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: NAME, owner: someone}
spec:
  taskType: echo
  parallel: {max_shards: 3}
  data: {type: list, items: [a, b, c, d, e]}
  output: {artifacts: [responses.json, logs]}
"""

STAGES = """
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: NAME}
spec:
  taskType: echo
  stages:
    - {name: one, spec: {data: {type: list, items: [a]}}}
    - {name: two, spec: {data: {type: upstream, node: one, text: "again: {output}"}}}
"""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of one template, so that loading the code location stays quick."""
    folder = tmp_path / "library"
    folder.mkdir()
    monkeypatch.setenv("MLOC_TEMPLATES_DIR", str(folder))
    return folder


def test_job_execute_leaves_results_and_a_run(
    library: Path, dagster_cli: Command, instance: dg.DagsterInstance
) -> None:
    (library / "t.yaml").write_text(TEMPLATE.replace("NAME", "job-execute"))
    done = dagster_cli("job", "execute", "-m", "mloc_dagster.definitions", "-j", "job_execute")
    assert done.returncode == 0, done.stderr
    (task_id,) = open_store().task_ids()
    folder = open_store().task(task_id)
    assert [row.output for row in read_rows(folder)] == ["a", "b", "c", "d", "e"]
    assert json.loads(folder.read_bytes("responses.json"))["result"]["items"][4] == {
        "index": 4,
        "output": "e",
        "finish_reason": "stop",
    }
    assert verify_manifest(folder) == ()
    run = instance.get_run_by_id(task_id)
    assert run is not None
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.job_name == "job_execute"
    # All of it is where the settings say, and nothing in the folder of the command.
    printed = settings().home.resolve() / "compute_logs" / task_id
    assert list(printed.rglob("*.out"))
    assert not (ROOT / "storage").exists()


def test_the_multiprocess_executor_runs_the_same_ops(
    library: Path, dagster_cli: Command, tmp_path: Path
) -> None:
    (library / "t.yaml").write_text(TEMPLATE.replace("NAME", "several-processes"))
    config = tmp_path / "config.yaml"
    config.write_text("execution: {config: {multiprocess: {max_concurrent: 2}}}")
    done = dagster_cli(
        "job", "execute", "-m", "mloc_dagster.definitions", "-j", "several_processes",
        "-c", str(config),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (task_id,) = open_store().task_ids()
    rows = list(read_rows(open_store().task(task_id)))
    assert [row.output for row in rows] == ["a", "b", "c", "d", "e"]
    assert len({row.worker for row in rows}) == 3


def test_asset_materialize_takes_the_latest_responses_for_a_later_stage_alone(
    library: Path, dagster_cli: Command
) -> None:
    (library / "t.yaml").write_text(STAGES.replace("NAME", "materialize"))
    module = ("-m", "mloc_dagster.definitions")
    done = dagster_cli("asset", "materialize", *module, "--select", "materialize/one_responses")
    assert done.returncode == 0, done.stderr
    (first,) = open_store().task_ids()
    done = dagster_cli("asset", "materialize", *module, "--select", "materialize/two_responses")
    assert done.returncode == 0, done.stderr
    (second,) = set(open_store().task_ids()) - {first}
    assert verify_manifest(open_store().task(second)) == ()
    assert [row.output for row in read_rows(open_store().task(second))] == ["again: a"]


def test_a_stage_without_the_one_before_says_what_to_do(
    library: Path, dagster_cli: Command
) -> None:
    (library / "t.yaml").write_text(STAGES.replace("NAME", "never-made"))
    module = ("-m", "mloc_dagster.definitions")
    done = dagster_cli("asset", "materialize", *module, "--select", "never-made/two_responses")
    assert done.returncode != 0
    assert "never-made/one_responses was never materialized" in done.stdout + done.stderr


def test_assets_of_two_templates_in_one_run_are_two_tasks(
    library: Path, dagster_cli: Command
) -> None:
    for name in ("north", "south"):
        (library / f"{name}.yaml").write_text(TEMPLATE.replace("NAME", name))
    selected = "north/responses,south/responses"
    done = dagster_cli(
        "asset", "materialize", "-m", "mloc_dagster.definitions", "--select", selected
    )
    assert done.returncode == 0, done.stderr
    names = [read_record(open_store().task(each)).template_name for each in open_store().task_ids()]
    assert sorted(names) == ["north", "south"]


def test_the_shipped_library_is_a_valid_code_location(dagster_cli: Command) -> None:
    done = dagster_cli("definitions", "validate", "-m", "mloc_dagster.definitions")
    assert done.returncode == 0, done.stdout + done.stderr
