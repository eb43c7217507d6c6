"""A package of somebody else adds a task type, an engine, a metric and a reward: `tests/plugin`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.e2e.plugin_package import PLUGIN, install_plugin, python_path
from tests.e2e.stack import Stack

pytestmark = pytest.mark.e2e

GRADES = PLUGIN / "templates" / "readability.yaml"
RECORDED = PLUGIN / "templates" / "recorded.yaml"

STAGES = """\
apiVersion: mloc/v1
kind: ReadabilityTask
metadata: {name: graded}
spec:
  stages:
    - name: grade
      spec:
        data: {type: list, items: [The cat sat on the mat.]}
    - name: say
      spec:
        taskType: echo
        data:
          type: graph_template
          template:
            columns: [{label: grade, expr: "grade.result.items[*].output"}]
            text: "It takes {grade} years."
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the built wheel in it."""
    return install_plugin(tmp_path_factory.mktemp("site-packages"))


@pytest.fixture(scope="module")
def stack(installed: Path) -> Iterator[Stack]:
    environment = {"PYTHONPATH": python_path(installed)}
    with (
        tempfile.TemporaryDirectory(prefix="mloc-") as home,
        Stack(Path(home), workers=1, run_workers=1, api=True, environment=environment) as running,
    ):
        yield running


def copied(source: Path, folder: Path, *changes: tuple[str, str]) -> str:
    """Writes a template with some of its text replaced, and returns its path."""
    text = source.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / source.name).write_text(text)
    return str(folder / source.name)


def outputs(folder: Path) -> list[str]:
    items = json.loads((folder / "responses.json").read_text())["result"]["items"]
    return [each["output"] for each in items]


def test_its_template_runs_directly(stack: Stack) -> None:
    done = stack.mloc("run", str(GRADES), "--quiet")
    assert done.returncode == 0, done.stderr
    easy, hard = map(float, outputs(Path(done.stdout.strip())))
    assert easy < 0 < 20 < hard


def test_its_template_runs_on_the_fleet_and_later_stages_read_it(
    stack: Stack, tmp_path: Path
) -> None:
    stages = tmp_path / "stages.yaml"
    stages.write_text(STAGES)
    done = stack.mloc("submit", str(stages), "--wait")
    assert done.returncode == 0, done.stderr + done.stdout
    folders = [each.parent for each in (stack.layout.home / "results").glob("*/responses.json")]
    assert ["It takes -5.1 years."] in [outputs(each) for each in folders]


@pytest.mark.parametrize(
    ("template", "change", "said"),
    [
        ("readability", ("formula:", "formla:"), ":12:5: spec.readability.formla: "),
        ("readability", ("coleman_liau", "colman_liau"), "'colman_liau'"),
        ("readability", ("ReadabilityTask", "ReadbilityTask"), "did you mean 'ReadabilityTask'?"),
        ("recorded", ("answers:", "anwers:"), ":13:7: spec.model.recorded.anwers: unknown key"),
        ("recorded", ("engine: recorded", "engine: recorder"), "did you mean 'recorded'?"),
        ("recorded", ("answers: answers.jsonl", "strict: false"), "recorded' needs answers"),
        ("brief", ("words: 2", "wrds: 2"), "an unexpected keyword argument 'wrds'; it takes words"),
        ("brief", ("name: short", "name: shrt"), "did you mean 'short'?"),
        ("brief", ("[brevity]", "[brevty]"), "did you mean 'brevity'?"),
    ],
)
def test_a_wrong_template_is_refused_everywhere(
    stack: Stack, tmp_path: Path, template: str, change: tuple[str, str], said: str
) -> None:
    path = copied(PLUGIN / "templates" / f"{template}.yaml", tmp_path, change)
    for command in (["validate"], ["submit"]):
        done = stack.mloc(*command, path)
        assert done.returncode == 2
        assert f"{template}.yaml:" in done.stdout + done.stderr
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_its_engine_answers_directly(stack: Stack) -> None:
    done = stack.mloc("run", str(RECORDED), "--quiet")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert outputs(folder) == ["North.", "A mile."]
    engines = pq.read_table(folder / "responses.parquet")["engine"].to_pylist()
    assert engines == ["acme-recorded 1.0"] * 2


def test_its_engine_answers_on_the_fleet_from_a_file_that_came_along(
    stack: Stack, tmp_path: Path
) -> None:
    path = copied(RECORDED, tmp_path, ("How far?", "How long?"))
    (tmp_path / "answers.jsonl").write_text('{"prompt": "Which way?", "output": "South."}\n')
    change = ("--set", "spec.inference.error_budget=0.5")
    done = stack.mloc("submit", path, "--wait", "--json", *change)
    assert done.returncode == 0, done.stderr + done.stdout
    (task,) = json.loads(done.stdout)["tasks"]
    folder = stack.layout.home / "results" / task["task_id"]
    south, unknown = json.loads((folder / "responses.json").read_text())["result"]["items"]
    assert (south["output"], unknown["output"]) == ("South.", "")
    assert unknown["error"] == "no answer to this prompt was recorded"


def test_a_failed_row_fails_the_task_which_can_be_retried(stack: Stack, tmp_path: Path) -> None:
    path = copied(GRADES, tmp_path, ("The cat sat on the mat.", "'...'"))
    done = stack.mloc("submit", path, "--wait", "--json")
    assert done.returncode == 1
    (task,) = json.loads(done.stdout)["tasks"]
    task_id = task["task_id"]
    told = stack.mloc("show", task_id).stdout
    assert "there are no words in this row" in told
    retried = stack.mloc("retry", task_id)
    assert retried.returncode == 0, retried.stderr


def test_its_schema_is_everybodys(stack: Stack) -> None:
    schema = json.loads(stack.mloc("schema").stdout)
    assert schema["$defs"]["Readability"]["description"] == "How texts are graded."
    assert "answers" in schema["$defs"]["RecordedOptions"]["properties"]
    document = yaml.safe_load(GRADES.read_text())
    check = Draft202012Validator(schema)
    assert check.is_valid(document)
    document["spec"]["readability"] = {"formula": "flesch"}
    assert not check.is_valid(document)


SCORED = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: scored}
spec:
  data: {type: dataset, url: rows.jsonl}
  evaluation: {reference: answer, metrics: [brevity]}
"""


def test_its_metric_scores_rows(stack: Stack, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "aa"}, {"prompt": "aaa", "answer": "a"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "scored.yaml").write_text(SCORED)
    done = stack.mloc("submit", str(tmp_path / "scored.yaml"), "--wait", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    (task,) = json.loads(done.stdout)["tasks"]
    result = json.loads(stack.mloc("result", task["task_id"], "--json").stdout)["result"]
    assert result["metrics"] == {"brevity": 0.5}
    assert [each["columns"]["brevity"] for each in result["items"]] == [1, 0]


def test_its_metric_and_its_reward_function_train(stack: Stack) -> None:
    pytest.importorskip("trl")
    done = stack.mloc("run", str(PLUGIN / "templates" / "brief.yaml"), "--quiet")
    assert done.returncode == 0, done.stderr
    training = json.loads((Path(done.stdout.strip()) / "training.json").read_text())
    assert training["before"].keys() == training["after"].keys() == {"brevity"}
    assert training["metrics"]["reward"] > 0
