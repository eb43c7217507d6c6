"""Templates that came over the API, as Dagster's UI shows them and starts them again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mloc_dagster.client import Client
from mloc_dagster.dispatch import reload_location
from mloc_dagster.services import LIBRARY_LOCATION, SUBMITTED_LOCATION
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: from-elsewhere}}
spec:
  stages:
    - name: first
      spec: {{taskType: echo, data: {{type: list, items: [one, two]}}}}
    - name: second
      dependsOn: [first]
      spec: {{taskType: echo, data: {{type: dataset, url: "{rows}", column: text}}}}
"""

ASSETS = """
query Assets {
  repositoriesOrError {
    ... on RepositoryConnection {
      nodes {
        location { name }
        jobs { name }
        assetNodes { assetKey { path } dependencyKeys { path } assetChecksOrError {
          ... on AssetChecks { checks { name } } } }
      }
    }
  }
}
"""

RUN = """
query Run($id: ID!) {
  runOrError(runId: $id) {
    ... on Run {
      status jobName
      repositoryOrigin { repositoryLocationName }
      assetMaterializations { assetKey { path } }
      stepStats { stepKey status }
    }
  }
}
"""

AGAIN = """
mutation Again($id: String!) {
  launchRunReexecution(reexecutionParams: {parentRunId: $id, strategy: FROM_FAILURE}) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
  }
}
"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with tempfile.TemporaryDirectory(prefix="mloc-") as home:
        opened = {"MLOC_API_DATA_ROOTS": str(Path(home, "data"))}
        options: dict[str, Any] = {"workers": 1, "run_workers": 1, "environment": opened}
        with Stack(Path(home), api=True, **options) as running:
            yield running


def ask(stack: Stack, query: str, **variables: Any) -> dict[str, Any]:
    asked = {"query": query, "variables": variables}
    with httpx.Client(trust_env=False, timeout=60) as client:
        reply = client.post(f"{stack.webserver_url}/graphql", json=asked).raise_for_status().json()
    assert "errors" not in reply, reply["errors"]
    return reply["data"]


def test_what_came_over_the_api_has_graph_assets_and_re_execution_in_the_ui(
    stack: Stack,
) -> None:
    rows = stack.layout.home / "data" / "rows.jsonl"
    rows.parent.mkdir()
    with Client(f"http://127.0.0.1:{stack.api_port}") as client:
        submitted = client.submit(TEMPLATE.format(rows=rows))
        first, second = (each.task_id for each in submitted.tasks)
        workflow_id = submitted.tasks[0].workflow_id
        ended = until(lambda: states(client, workflow_id, among=("DEAD",)), "the second fails")
        assert ended == ["DONE", "DEAD"]
        (run_id,) = {str(client.show(each).run_id) for each in (first, second)}

        reload_location(stack.webserver_url)
        nodes = ask(stack, ASSETS)["repositoriesOrError"]["nodes"]
        (node,) = [each for each in nodes if each["location"]["name"] == SUBMITTED_LOCATION]
        assets = {"/".join(each["assetKey"]["path"]): each for each in node["assetNodes"]}
        upstream = [
            each["path"] for each in assets["from-elsewhere/second_responses"]["dependencyKeys"]
        ]
        assert [each for each in upstream if each[0] != "datasets"] == [
            ["from-elsewhere", "first_responses"]
        ]
        assert [each[-1] for each in upstream if each[0] == "datasets"] == ["rows.jsonl"]
        assert assets["from-elsewhere/first_responses"]["assetChecksOrError"]["checks"]
        run = ask(stack, RUN, id=run_id)["runOrError"]
        assert run["repositoryOrigin"]["repositoryLocationName"] == SUBMITTED_LOCATION
        assert run["jobName"] in {each["name"] for each in node["jobs"]}
        assert {"path": ["from-elsewhere", "first_responses"]} in [
            each["assetKey"] for each in run["assetMaterializations"]
        ]
        assert any("run_shard" in each["stepKey"] for each in run["stepStats"])

        rows.write_text('{"text": "here now"}\n')
        again = ask(stack, AGAIN, id=run_id)["launchRunReexecution"]
        assert again["__typename"] == "LaunchRunSuccess", again
        until(lambda: states(client, workflow_id, among=("DONE",)), "it is done")
        assert client.show(second).run_id == again["run"]["runId"]
        assert client.show(first).run_id == run_id


OWN = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: my-own}
spec: {data: {type: dataset, url: own.jsonl, column: text}}
"""

HISTORY = """
query History($job: String!, $key: AssetKeyInput!) {
  pipelineOrError(params: {
    pipelineName: $job
    repositoryName: "__repository__"
    repositoryLocationName: "mloc_dagster.definitions"
  }) {
    ... on Pipeline {
      runs(limit: 9) { runId status repositoryOrigin { repositoryLocationName } }
    }
  }
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      groupName
      isMaterializable
      jobNames
      dependencies { asset { assetKey { path } groupName kinds } }
      assetMaterializations(limit: 1) { runId }
      metadataEntries { label }
    }
  }
}
"""


def history(stack: Stack, name: str, asset: str) -> dict[str, Any]:
    key: Any = {"path": [name, asset]}
    return ask(stack, HISTORY, job=name.replace("-", "_"), key=key)


def test_a_template_of_ones_own_that_was_run_has_history_group_and_lineage(stack: Stack) -> None:
    file = stack.layout.home / "own.yaml"
    file.write_text(OWN)
    file.with_name("own.jsonl").write_text('{"text": "one"}\n')
    for template in (str(file), "core/echo"):
        done = stack.mloc("run", template, "--quiet")
        assert done.returncode == 0, done.stderr
    reload_location(stack.webserver_url, LIBRARY_LOCATION)
    own, echo = history(stack, "my-own", "responses"), history(stack, "echo", "responses")
    for found in (own, echo):
        (run,) = found["pipelineOrError"]["runs"]
        assert run["status"] == "SUCCESS"
        assert run["repositoryOrigin"]["repositoryLocationName"] == LIBRARY_LOCATION
        (made,) = found["assetNodeOrError"]["assetMaterializations"]
        assert made["runId"] == run["runId"]
    node = own["assetNodeOrError"]
    assert (node["groupName"], node["isMaterializable"]) == ("my_own", True)
    assert "my_own" in node["jobNames"]
    assert "dagster/column_schema" in {each["label"] for each in node["metadataEntries"]}
    (source,) = [each["asset"] for each in node["dependencies"]]
    assert source["assetKey"]["path"][-1] == "own.jsonl"
    assert (source["groupName"], "dataset" in source["kinds"]) == ("datasets", True)


def states(client: Client, workflow_id: str, *, among: tuple[str, ...]) -> list[str] | None:
    """Returns how a workflow's tasks are once the last one is as wanted."""
    found = [each.status.value for each in client.workflow(workflow_id).tasks]
    return found if found[-1] in among else None
