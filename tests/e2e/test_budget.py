"""A budget ends a task in the middle: in a command, and on two workers of which one is killed."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import pyarrow.parquet as pq
import pytest

from tests.e2e.stack import Stack, until
from tests.e2e.test_cli_run import Place

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: spender}}
spec:
  taskType: echo
  parallel: {{max_shards: 8}}
  echo: {{delay_s: {delay_s}}}
  resources: {{cost_per_token: {{input: 0.25, output: 0.75}}}}
  budget: {{{budget}}}
  output: {{formats: [json, parquet]}}
  data: {{type: list, items: [{items}]}}
"""
"""A row takes two tokens, which cost 1."""


def template(rows: int, budget: str, delay_s: float = 0.0) -> str:
    items = ", ".join(f"row{number}" for number in range(rows))
    return TEMPLATE.format(delay_s=delay_s, budget=budget, items=items)


@pytest.fixture(scope="module")
def place(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    return Place(tmp_path_factory.mktemp("budget"), session_home)


def kept(folder: Path) -> list[dict[str, Any]]:
    """Returns the exported rows that were computed."""
    rows = pq.read_table(folder / "responses.parquet").to_pylist()
    left_out = [each for each in rows if each["error"]]
    assert all(each["error"].startswith("not computed: the task's budget") for each in left_out)
    return [each for each in rows if not each["error"]]


def test_a_task_that_reaches_its_budget_is_done(place: Place) -> None:
    path = place.write("spender.yaml", template(40, "cost: 12"))
    done = place.run("run", path)
    assert done.returncode == 0, done.stderr
    assert "spender: budget reached: cost 12 of 12 after 12 of 40 rows" in done.stdout
    folder = Path(done.stdout.splitlines()[-1])
    rows = kept(folder)
    assert [each["index"] for each in rows] == list(range(12))
    assert {each["cost"] for each in rows} == {1.0}
    again = place.run("run", "--resume", folder.name, "--json")
    assert again.returncode == 0, again.stderr
    (task,) = json.loads(again.stdout)["tasks"]
    assert task["budget"] == {
        "name": "cost",
        "limit": 12,
        "spent": 12,
        "computed": 12,
        "rows": 40,
    }
    assert (task["errors"], task["usage"]["cost"]) == (28, 12)
    assert len(kept(folder)) == 12


def test_the_dagster_check_is_a_warning(place: Place, session_instance: dg.DagsterInstance) -> None:
    path = place.write("warned.yaml", template(4, "tokens: 2").replace("spender", "warned"))
    done = place.run("run", path, "--json")
    (run,) = json.loads(done.stdout)["runs"]
    kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
    events = session_instance.all_logs(run["run_id"], of_type=kind)
    checks = [each.get_dagster_event().asset_check_evaluation_data for each in events]
    (found,) = [each for each in checks if each.check_name == "budget"]
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description == "budget reached: tokens 2 of 2 after 1 of 4 rows"
    assert all(each.passed for each in checks if each is not found)


def test_a_killed_command_has_spent_what_is_on_the_store(place: Place) -> None:
    path = place.write("killed.yaml", template(40, "tokens: 40", delay_s=0.1))
    before = place.tasks()
    process = place.start("run", path)
    until(lambda: any(place.parts(each) for each in place.tasks() - before), "rows are there")
    (task_id,) = place.tasks() - before
    until(lambda: len(place.parts(task_id)) >= 7, "more rows are there")
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    spent = len(place.parts(task_id))
    done = place.run("run", "--resume", task_id)
    assert done.returncode == 0, done.stderr
    assert 7 <= spent < 20
    assert "budget reached: tokens 40 of 40 after 20 of 40 rows" in done.stdout
    assert len(kept(place.results / task_id)) == 20


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("cost: -1", "unkept.yaml:9:18: spec.budget.cost: expected more than 0"),
        ("tokens: 0", "unkept.yaml:9:20: spec.budget.tokens: expected at least 1, got 0"),
    ],
)
def test_a_budget_that_makes_no_sense_is_exit_code_2(place: Place, budget: str, said: str) -> None:
    done = place.run("run", place.write("unkept.yaml", template(2, budget)))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


UNPRICED = template(2, "cost: 3").replace("resources", "# resources")


def test_a_cost_without_a_price_is_exit_code_2(place: Place) -> None:
    done = place.run("run", place.write("unpriced.yaml", UNPRICED))
    assert done.returncode == 2
    assert "unpriced.yaml:9:12: spec.budget.cost: nothing tells what the task costs" in done.stderr


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Two workers, a run worker and the API."""
    environment = {"MLOC_LEASE_TTL_S": "3", "MLOC_FLUSH_INTERVAL_S": "0.2"}
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        home = Path(folder) / "home"
        with Stack(home, workers=2, run_workers=1, api=True, environment=environment) as running:
            yield running


@pytest.mark.parametrize("killed", [False, True])
def test_two_workers_share_one_budget(stack: Stack, killed: bool) -> None:
    url = f"http://127.0.0.1:{stack.api_port}/api/v1/tasks"
    with httpx.Client(trust_env=False, timeout=60) as client:
        text = template(2000, "tokens: 200", delay_s=0.05)
        answer = client.post(url, content=text)
        assert answer.status_code == 202, answer.text
        task_id = answer.json()["tasks"][0]["task_id"]
        folder = stack.layout.home / "results" / task_id
        if killed:
            until(lambda: len(list(folder.glob("shards/*/part-*"))) > 2, "rows are there")
            stack.kill("worker-1")
        shown = until(lambda: ended(client.get(f"{url}/{task_id}").json()), "the task ends")
    assert shown["status"] == "DONE", shown
    rows = kept(folder)
    assert 100 <= len(rows) < 1000, "two workers would have 2000 rows in 50 s"
    assert len({each["worker"] for each in rows}) >= 2
    amounts = f"tokens {2 * len(rows)} of 200 after {len(rows)} of 2,000 rows"
    assert shown["budget"] == f"budget reached: {amounts}"
    assert shown["errors"] == 2000 - len(rows)
    lines = stack.mloc("show", task_id).stdout.splitlines()
    assert f"budget    reached: {amounts}" in lines


def ended(task: dict[str, Any]) -> dict[str, Any] | None:
    return task if task["status"] in ("DONE", "FAILED", "DEAD", "CANCELLED") else None


def test_the_api_refuses_a_cost_without_a_price(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.api_port}/api/v1/tasks"
    with httpx.Client(trust_env=False, timeout=60) as client:
        answer = client.post(url, content=UNPRICED)
    assert answer.status_code == 422
    assert "nothing tells what the task costs" in answer.text
