"""The example project, as somebody has it who made a project by `create-dagster`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.e2e.conftest import ROOT
from tests.e2e.stack import until
from tests.e2e.webserver import serving

pytestmark = pytest.mark.e2e

EXAMPLE = ROOT / "examples" / "daily_questions"
PARTITIONS = ["2026-01-01", "2026-01-02"]
COMMANDS = Path(sys.executable).parent


@dataclass
class Project:
    """A copy of the example.

    Attributes:
        folder: Where it lies.
        environment: Of its commands.
    """

    folder: Path
    environment: dict[str, str]

    def dg(self, *arguments: str) -> str:
        """Runs a command of `dg`, which must succeed; returns what it prints."""
        done = subprocess.run(
            [COMMANDS / "dg", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def copied(tmp_path: Path) -> Project:
    folder = tmp_path / "daily_questions"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    own = {
        "DAGSTER_HOME": str(home),
        "MLOC_HOME": str(tmp_path / "mloc"),
        "MLOC_RESULTS_URL": str(tmp_path / "results"),
        "PYTHONPATH": str(folder / "src"),
        "PATH": f"{COMMANDS}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }
    return Project(folder, {**os.environ, **own})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return copied(tmp_path)


def test_dg_knows_the_component_and_scaffolds_one(project: Project) -> None:
    assert "mloc.MlocTemplate" in project.dg("list", "components")
    project.dg("scaffold", "defs", "mloc.MlocTemplate", "greeting", "--template", "core/echo")
    made = project.folder / "src" / "daily_questions" / "defs" / "greeting"
    assert {each.name for each in made.iterdir()} == {"defs.yaml", "template.yaml"}
    project.dg("check", "defs")
    listed = json.loads(project.dg("list", "defs", "--json"))
    keys = {each["asset_key"] for each in listed["assets"]}
    own = {"questions", "answers/responses", "report", "greeting/responses"}
    assert keys == {*own, "models/tiny-chat"}


def test_dg_takes_this_repository_for_a_project(project: Project) -> None:
    here = replace(project, folder=ROOT)
    own = project.folder / "own.yaml"
    own.write_text(
        (ROOT / "templates/core/echo.yaml").read_text().replace("name: echo", "name: mine")
    )
    subprocess.run(
        [COMMANDS / "mloc", "run", own, "--quiet"], cwd=ROOT, env=here.environment, check=True
    )
    here.dg("check", "defs")
    listed = json.loads(here.dg("list", "defs", "--json"))
    assert "mine" in {each["name"] for each in listed["jobs"]}
    assert {"demo", "draft_refine_format"} <= {each["name"] for each in listed["jobs"]}


def test_what_is_wrong_in_a_template_is_said_with_its_line(project: Project) -> None:
    template = project.folder / "src/daily_questions/defs/answers/template.yaml"
    template.write_text(template.read_text().replace("temperature: 0", "temperatur: 0"))
    done = subprocess.run(
        [COMMANDS / "dg", "check", "defs"],
        cwd=project.folder,
        env=project.environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "template.yaml:" in said
    assert "did you mean 'temperature'" in said


@pytest.fixture(scope="module")
def webserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`dg dev`: the webserver and the daemon, which runs backfills and sensors.

    The project has a template with partitions of its own, too.
    """
    project = copied(tmp_path_factory.mktemp("served"))
    folder = project.folder / "src/daily_questions/defs/by_language"
    folder.mkdir()
    attributes = "attributes: {template: core/partitioned}"
    (folder / "defs.yaml").write_text(f"type: mloc.MlocTemplate\n{attributes}\n")
    command = [COMMANDS / "dg", "dev", "--port"]
    log = project.folder / "dev.log"
    with serving(command, project.folder, project.environment, log) as url:
        yield url


def ask(url: str, query: str, **variables: object) -> Any:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        found = json.load(reply)
    assert "errors" not in found, found
    return found["data"]


BACKFILL = """
mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
MATERIALIZED = """
query ($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      assetMaterializations(limit: 100) {
        partition
        metadataEntries { label ... on JsonMetadataEntry { jsonString } }
      }
    }
  }
}"""
START_SENSOR = """
mutation ($sensor: SensorSelector!) {
  startSensor(sensorSelector: $sensor) { __typename ... on PythonError { message } }
}"""
TICKS = """
query ($sensor: SensorSelector!) {
  sensorOrError(sensorSelector: $sensor) { ... on Sensor { sensorState { ticks { status } } } }
}"""
MATERIALIZE = """
mutation ($selector: JobOrPipelineSelector!, $metadata: ExecutionMetadata!) {
  launchRun(executionParams: {selector: $selector, executionMetadata: $metadata}) {
    __typename
    ... on PythonError { message }
  }
}"""
RUNS = "{ runsOrError(limit: 50) { ... on Runs { results { runId status } } } }"


def materialized(url: str, *key: str) -> Mapping[str, Any]:
    """Returns what the newest materialization of each partition says."""
    node = ask(url, MATERIALIZED, key={"path": key})["assetNodeOrError"]
    found: dict[str, Any] = {}
    for each in node["assetMaterializations"]:
        entries = {entry["label"]: entry.get("jsonString") for entry in each["metadataEntries"]}
        found.setdefault(each["partition"], entries)
    return found


def backfill(url: str, keys: list[list[str]], partitions: list[str]) -> None:
    selected = {"assetSelection": [{"path": each} for each in keys], "partitionNames": partitions}
    launched = ask(url, BACKFILL, backfill=selected)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched


def no_failure(url: str) -> bool:
    runs = ask(url, RUNS)["runsOrError"]["results"]
    assert not [each for each in runs if each["status"] in ("FAILURE", "CANCELED")], runs
    return True


def has_looked(url: str, sensor: Mapping[str, str]) -> bool:
    ticks = ask(url, TICKS, sensor=sensor)["sensorOrError"]["sensorState"]["ticks"]
    return any(each["status"] in ("SUCCESS", "SKIPPED") for each in ticks)


@pytest.fixture(scope="module")
def today(webserver: str) -> str:
    """The newest day, whose questions are materialized while everything else is backfilled.

    Backfills and sensors are looked at each half a minute, and here all at the same time.
    """
    backfill(webserver, [["questions"], ["answers", "responses"], ["report"]], PARTITIONS)
    backfill(webserver, [["partitioned", "responses"]], ["de", "fr"])
    location = {"repositoryLocationName": "daily_questions", "repositoryName": "__repository__"}
    sensor = {**location, "sensorName": "default_automation_condition_sensor"}
    assert ask(webserver, START_SENSOR, sensor=sensor)["startSensor"]["__typename"] == "Sensor"
    # The sensor looks for what is new since it first looked.
    until(lambda: has_looked(webserver, sensor), "the sensor has looked")
    today = dg.DailyPartitionsDefinition(start_date="2026-01-01").get_last_partition_key()
    assert today is not None
    questions = {
        **location,
        "jobName": "__ASSET_JOB",
        "assetSelection": [{"path": ["questions"]}],
    }
    tags = {"tags": [{"key": "dagster/partition", "value": today}]}
    launched = ask(webserver, MATERIALIZE, selector=questions, metadata=tags)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return today


def test_days_are_backfilled(webserver: str, today: str) -> None:
    until(
        lambda: no_failure(webserver) and set(PARTITIONS) <= set(materialized(webserver, "report")),
        "two days are backfilled",
        timeout_s=900,
    )
    reports = materialized(webserver, "report")
    for day in PARTITIONS:
        counted = json.loads(reports[day]["answers"])
        assert sorted(each["topic"] for each in counted) == ["calendar", "news"]
        assert [each["answers"] for each in counted] == [1, 1]


def test_a_new_day_goes_through_by_itself(webserver: str, today: str) -> None:
    until(
        lambda: no_failure(webserver) and today in materialized(webserver, "report"),
        "the newest day went through by its automation conditions",
        timeout_s=900,
    )


def test_the_partitions_of_a_template_are_backfilled(webserver: str, today: str) -> None:
    until(
        lambda: (
            no_failure(webserver)
            and {"de", "fr"} == set(materialized(webserver, "partitioned", "responses"))
        ),
        "two languages are backfilled",
        timeout_s=900,
    )
