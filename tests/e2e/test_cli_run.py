"""`mloc run` as a person or a script types it: whole processes, a real PostgreSQL, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mloc_dagster.ops import WORKFLOW_TAG

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 30
PATIENCE_S = 600

SLOW = f"""\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: slow}}
spec:
  taskType: echo
  parallel: {{max_shards: 4}}
  echo: {{delay_s: 0.15}}
  data: {{type: list, items: [{", ".join(f"row {index}" for index in range(ROWS))}]}}
"""
STAGES = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: staged}
spec:
  taskType: echo
  stages:
    - name: draft
      spec: {data: {type: list, items: [one, two]}}
    - name: refine
      spec: {data: {type: list, items: ["${draft.result.items[0].output} again"]}}
---
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: second}
spec:
  taskType: echo
  data: {type: list, items: [three]}
"""


class Place:
    """A home, a results folder and a command line in them."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        # A part per row: whatever is finished is there to be seen.
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"},
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(self.results),
            "MLOC_FLUSH_ROWS": "1",
        }

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.write_text(text)
        return str(path)

    def tasks(self) -> set[str]:
        return {path.parent.name for path in self.results.glob("*/task.json")}

    def parts(self, task_id: str) -> list[Path]:
        return sorted((self.results / task_id).glob("shards/*/part-*.jsonl"))

    def items(self, task_id: str) -> list[dict[str, Any]]:
        return json.loads((self.results / task_id / "responses.json").read_text())["result"][
            "items"
        ]


@pytest.fixture(scope="module")
def place(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path_factory: pytest.TempPathFactory,
) -> Place:
    """Shares the session's database, which saves each command a start of PostgreSQL."""
    return Place(tmp_path_factory.mktemp("cli"), session_home)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> list[dict[str, Any]]:
    """What `SLOW` answers when nobody interrupts it."""
    done = place.run("run", place.write("slow.yaml", SLOW), "--set", "spec.echo.delay_s=0", "-q")
    assert done.returncode == 0, done.stderr
    return place.items(Path(done.stdout.strip()).name)


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.02)


def started_task(place: Place, process: subprocess.Popen[str], before: set[str]) -> str:
    """Waits until a new task has left its first rows, and returns its id."""
    until(lambda: any(place.parts(each) for each in place.tasks() - before), process)
    (task_id,) = place.tasks() - before
    return task_id


def indexes(parts: Iterable[bytes]) -> list[int]:
    return [json.loads(line)["index"] for part in parts for line in part.splitlines()]


def run_statuses(instance: dg.DagsterInstance, workflow_id: str) -> list[str]:
    """Returns the statuses of a workflow's Dagster runs, oldest first."""
    runs = instance.get_runs(dg.RunsFilter(tags={WORKFLOW_TAG: workflow_id}))
    return [run.status.value for run in reversed(runs)]


def test_a_run_prints_figures_answers_and_last_of_all_the_folder(place: Place) -> None:
    path = place.write("poison.yaml", SLOW.replace("delay_s: 0.15", "poison: [1]"))
    done = place.run("run", path, "--set", "spec.echo.error_budget=0.5")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (Path(lines[-1]) / "manifest.json").is_file()
    assert any(line.split()[:3] == ["slow", str(ROWS), "1"] for line in lines)
    assert any("row 0 → row 0" in line for line in lines)
    assert any("row 1 → poisoned row" in line for line in lines)
    task_id = Path(lines[-1]).name
    assert done.stderr.splitlines() == [
        f"slow: task {task_id}",
        f"slow: {ROWS} rows",
        f"slow: look at the results in a browser: mloc view {task_id}",
    ]


UNKEPT = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: kept}
spec:
  sloSeconds: 600
  resources: {hardware: {gpu: {count: 1, type: h100}}}
  data: {type: list, items: [a], seed: 3}
---
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: broken}
spec:
  sloSeconds: 0.001
  data: {type: list, items: [a, b]}
  echo: {poison: [0, 1]}
"""


def test_what_a_template_asks_in_vain_and_whose_failure_it_is_are_said(place: Place) -> None:
    path = place.write("unkept.yaml", UNKEPT)
    document = json.loads(place.run("run", path, "--json").stdout)
    said = "broken: 2 of 2 rows ended with an error, and error_budget allows 1; the first, row 0: "
    assert document["failures"][0].startswith(said)
    kept, broken = document["runs"]
    assert (kept["failures"], document["failures"]) == ([], [f"broken: {broken['failures'][0]}"])
    slos = [task["slo"] for task in document["tasks"]]
    assert [(each["seconds"], each["met"]) for each in slos] == [(600, True), (0.001, False)]
    idle, lacking = document["warnings"]
    assert (idle["line"], idle["path"]) == (7, "spec.data.seed")
    assert lacking["message"].startswith("needs 1 h100 GPU, has none")

    done = place.run("run", path)
    assert done.returncode == 1
    assert "unkept.yaml:7:34: spec.data.seed: warning: data.seed has no effect" in done.stderr
    assert "kept: spec.resources.hardware: warning: needs 1 h100 GPU, has none" in done.stderr
    assert "kept: SLO 10:00 met, took" in done.stdout
    assert "broken: SLO 0.0 s missed, took" in done.stdout


def test_json_is_one_document_over_all_templates_of_a_file(place: Place) -> None:
    done = place.run("run", place.write("staged.yaml", STAGES), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["failures"] == []
    assert [(each["node"], each["status"], each["rows"]) for each in document["tasks"]] == [
        ("draft", "succeeded", 2),
        ("refine", "succeeded", 1),
        ("second", "succeeded", 1),
    ]
    assert [each["template"] for each in document["runs"]] == ["staged", "second"]
    assert document["tasks"][0]["task_id"] == f"{document['workflow_id']}-draft"
    for task in document["tasks"]:
        assert (Path(task["folder"]) / "responses.json").is_file()
    assert place.items(document["tasks"][1]["task_id"])[0]["output"] == "one again"


def test_results_go_where_the_option_says_and_quiet_prints_only_folders(place: Place) -> None:
    path = place.write("two.yaml", STAGES)
    done = place.run("run", path, "--quiet", "--results", "elsewhere")
    assert (done.returncode, done.stderr) == (0, "")
    folders = [Path(line) for line in done.stdout.splitlines()]
    assert len(folders) == 3
    assert all(each.parent == place.folder / "elsewhere" for each in folders)
    assert all((each / "manifest.json").is_file() for each in folders)


def test_a_failed_task_is_exit_code_1_and_can_be_resumed_with_its_errors(place: Place) -> None:
    path = place.write("failing.yaml", SLOW.replace("delay_s: 0.15", "poison: [1]"))
    done = place.run("run", path, "--set", "spec.echo.error_budget=0", "--quiet")
    assert done.returncode == 1
    assert (Path(done.stdout.strip()) / "task.json").is_file()
    assert f"1 of {ROWS} rows ended with an error, and error_budget allows 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "--retry-errors" in done.stderr.splitlines()[-1]


def test_missing_data_is_exit_code_2(place: Place) -> None:
    data = "{type: dataset, url: ./rows.jsonl}"
    text = SLOW.splitlines()[:-1]
    path = place.write("missing.yaml", "\n".join([*text, f"  data: {data}"]))
    place.write("row.jsonl", "{}")
    done = place.run("run", path)
    assert done.returncode == 2
    assert "rows.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_interrupted_task_goes_on_where_it_was(
    place: Place,
    session_instance: dg.DagsterInstance,
    undisturbed: list[dict[str, Any]],
    number: signal.Signals,
    code: int,
) -> None:
    before = place.tasks()
    process = place.start("run", place.write("slow.yaml", SLOW))
    task_id = started_task(place, process, before)
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code
    kept = {path: path.read_bytes() for path in place.parts(task_id)}
    assert 0 < len(kept) < ROWS
    if number != signal.SIGKILL:
        assert err.splitlines()[-1].endswith(f"go on with: mloc run --resume {task_id}")
        assert run_statuses(session_instance, task_id) == ["CANCELED"]

    done = place.run("run", "--resume", task_id, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["workflow_id"] == task_id
    assert document["tasks"][0]["rows"] == ROWS
    assert all(path.read_bytes() == content for path, content in kept.items())
    added = [path.read_bytes() for path in place.parts(task_id) if path not in kept]
    missing = set(range(ROWS)) - set(indexes(kept.values()))
    assert sorted(indexes(added)) == sorted(missing)  # and no row was computed twice
    assert place.items(task_id) == undisturbed
    assert run_statuses(session_instance, task_id) == ["CANCELED", "SUCCESS"]


def test_a_running_task_cannot_be_resumed_beside_itself(place: Place) -> None:
    before = place.tasks()
    process = place.start("run", place.write("slow.yaml", SLOW), "--set", "spec.echo.delay_s=5")
    try:
        task_id = started_task(place, process, before)
        done = place.run("run", "--resume", task_id)
        assert done.returncode == 2
        assert f"is running in process {process.pid}" in done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)


def test_a_second_signal_ends_a_wait_that_the_first_one_cannot(
    place: Place, session_instance: dg.DagsterInstance
) -> None:
    text = SLOW.replace("delay_s: 0.15", "fail_rate: 1") + "  retries: {max: 3, delay_s: 100}\n"
    before = place.tasks()
    process = place.start("run", place.write("retrying.yaml", text))
    assert process.stderr is not None
    for line in process.stderr:
        if "attempt 1 at shard 0003 of 4 failed" in line:
            break
    (task_id,) = place.tasks() - before
    process.send_signal(signal.SIGINT)
    for line in process.stderr:
        if line.startswith("stopping"):
            break
    process.send_signal(signal.SIGINT)
    rest: list[str] = []
    reader = threading.Thread(target=lambda: rest.extend(process.stderr or ()))
    reader.start()
    assert process.wait(timeout=300) == 130
    reader.join()
    process.communicate()  # closes the pipes
    assert f"mloc run --resume {task_id}" in rest[-1]
    assert run_statuses(session_instance, task_id) == ["CANCELED"]
