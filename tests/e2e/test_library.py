"""Every template of the library does what its header says, by the command its header gives."""

from __future__ import annotations

import json
import re
import shlex
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
import yaml

from mloc_dagster.compile import apply_sets, compile_document, load_documents, with_partition
from mloc_dagster.library import library_files
from mloc_dagster.local_run import run_template
from mloc_dagster.results import open_store, read_trajectories, verify_manifest
from tests.e2e.conftest import ROOT
from tests.endpoint_server import endpoint

pytestmark = pytest.mark.e2e

pytest.importorskip("torch")

TINY = [
    "spec.model.source.type=builtin",
    "spec.model.source.identifier=tiny-chat",
    "spec.model.source.revision=null",
]
LOCAL_ROWS = [f"data.url={ROOT}/templates/data/questions.jsonl", "data.name=null"]

PAGES = len(list((ROOT / "docs").rglob("*.md")))

# Rows of each task, in order; several lists for several documents.
ROWS = {
    "core/demo": [[24]],
    "core/echo": [[3]],
    "core/inference_single": [[2]],
    "core/inference_cpu": [[24]],
    "core/dataset_sharded": [[16]],
    "core/stages_draft_refine_format": [[4, 4, 4]],
    "core/dag_synthesis": [[3, 3, 3, 1]],
    "core/multi_document": [[2], [1]],
    "core/http_delivery": [[2]],
    "core/scheduled": [[4]],
    "core/embeddings": [[24]],
    "core/endpoint": [[3]],
    "core/openai_batch": [[9]],
    "core/align_tiny": [[24]],
    "core/scored": [[24, 2]],
    "core/budget": [[24]],
    "core/partitioned": [[2]],
    "core/rag_handbook": [[PAGES, PAGES, 22, 22, 22]],
    "core/tool_calls": [[40]],
    "core/agent_tools": [[40]],
    "core/grpo_tools": [[8]],
    "core/agent_practice": [[40, 120, 40]],
    "agents/default": [[1]],
    "agents/simple_search": [[1]],
    "agents/search_agent": [[1]],
    "agents/paper_collector": [[1]],
    "agents/planner": [[1]],
    "experiments/gsm8k_scored": [[24, 6]],
    "experiments/gsm8k_single": [[24]],
    "experiments/gsm8k_two_branch": [[24, 24, 24]],
}

# Templates that read a dataset of the hub read the shipped questions instead.
SETS = {
    "experiments/gsm8k_scored": [
        *TINY,
        *(f"spec.stages[answer].spec.{each}" for each in LOCAL_ROWS),
        "spec.stages[answer].spec.data.split=train",
        "spec.stages[answer].spec.evaluation.gate=null",  # tiny-chat cannot count
    ],
    "experiments/gsm8k_single": [*TINY, *(f"spec.{each}" for each in LOCAL_ROWS)],
    "experiments/gsm8k_two_branch": [
        *TINY,
        *(f"spec.graph.nodes[outline].spec.{each}" for each in LOCAL_ROWS),
        *(f"spec.graph.nodes[direct].spec.{each}" for each in LOCAL_ROWS),
    ],
}


def commands(path: Path) -> list[list[str]]:
    """Returns the arguments of each `mloc run` in a template's header."""
    header = path.read_text().partition("apiVersion")[0]
    lines = re.findall(r"^#   (?:\w+=\S+ )?mloc run (.+)$", header, re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """A server for the template that delivers; collects (path, authorization)."""
    heard: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while int(self.rfile.readline(), 16):
                    self.rfile.readline()
            else:
                self.rfile.read(int(self.headers["Content-Length"]))
            heard.append((self.path, self.headers["Authorization"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("RESULTS_TOKEN", "sesame")
    monkeypatch.setenv("RECEIVER", f"http://127.0.0.1:{server.server_port}/api/v1/results")
    yield heard
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def parrot() -> Iterator[str]:
    """The address of an endpoint that repeats what it is asked."""
    with endpoint() as fake:
        yield fake.url


def test_the_table_above_knows_every_template() -> None:
    assert set(ROWS) == set(library_files())


@pytest.mark.parametrize("name", sorted(library_files()))
def test_header(name: str) -> None:
    path = library_files()[name]
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=../mloc.schema.json\n")
    assert "# Expected:" in text
    found = commands(path)
    assert found, "the header gives no command"
    for arguments in found:
        assert (ROOT / arguments[0]) == path


@pytest.mark.parametrize("name", sorted(library_files()))
def test_the_template_runs(
    name: str,
    instance: dg.DagsterInstance,
    receiver: list[tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    path = library_files()[name]
    if name == "core/endpoint":
        answering = request.getfixturevalue("parrot")
        monkeypatch.setenv("ENDPOINT_URL", answering)
    if name.startswith("agents/"):
        answering = request.getfixturevalue("parrot")
        known = {"UTU_LLM_MODEL": "parrot", "UTU_LLM_BASE_URL": answering, "UTU_LLM_API_KEY": "k"}
        for variable, value in {**known, "SERPER_API_KEY": "k"}.items():
            monkeypatch.setenv(variable, value)
    given = commands(path)[-1][1:]
    sets = [value for flag, value in pairwise(given) if flag == "--set"]
    if name == "core/http_delivery":
        sets = ["spec.output.destination.url=${RECEIVER}"]
    documents = [apply_sets(document, SETS.get(name, sets)) for document in load_documents(path)]
    for key in (value for flag, value in pairwise(given) if flag == "--partition"):
        documents = [with_partition(document, key) for document in documents]
    for document, rows in zip(documents, ROWS[name], strict=True):
        outcome = run_template(compile_document(document), instance)
        assert outcome.succeeded, outcome.failures
        assert [each.summary.rows for each in outcome.tasks if each.summary] == rows
        for task in outcome.tasks:
            if task.training is None:
                assert task.summary is not None
                reached = task.summary.budget
                left_out = 0 if reached is None else reached.rows - reached.computed
                assert task.summary.errors == left_out
                assert bool(left_out) == (name == "core/budget")
            assert verify_manifest(open_store().task(task.task_id)) == ()
    if name == "core/http_delivery":
        assert len(heard := receiver) == 4  # the result, responses.json, and a log per shard
        assert {authorization for _, authorization in heard} == {"Bearer sesame"}


PLANNED = """\
apiVersion: mloc/v1
kind: AgentTask
metadata: {name: planned}
spec:
  configName: examples/planner
  task: How much is 6 * 7?
  output: {artifacts: [responses.json, agent_output.txt]}
  model:
    source: {identifier: scripted}
    scripted:
      turns:
        - tool_calls: [{name: python_worker, arguments: {task: Multiply 6 by 7}}]
        - text: "It is {result}"
      agents:
        INSTRUCTIONS:
          - tool_calls: [{name: python, arguments: {code: print(6 * 7)}}]
          - text: "{prompt}: {result}"
"""


def test_the_planner_asks_its_workers(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for variable in ("UTU_LLM_MODEL", "UTU_LLM_BASE_URL", "UTU_LLM_API_KEY", "SERPER_API_KEY"):
        monkeypatch.setenv(variable, "unused")
    preset = yaml.safe_load(library_files()["agents/planner"].read_text())
    worker = preset["spec"]["agent"]["tools"][1]["agent"]["instructions"]
    path = tmp_path / "planned.yaml"
    path.write_text(PLANNED.replace("INSTRUCTIONS", json.dumps(worker)))
    outcome = run_template(compile_document(load_documents(path)[0]), instance)
    assert outcome.succeeded, outcome.failures
    folder = open_store().task(outcome.tasks[0].task_id)
    ((row, steps),) = read_trajectories(folder)
    assert row.output == "It is Multiply 6 by 7: 42"
    (below,) = steps.workers.values()
    assert [each.tool for each in below.results.values()] == ["python"]

    # The worker's turns stand below its call.
    text = folder.read_bytes("agent_output.txt").decode()
    assert '> python_worker {"task":"Multiply 6 by 7"}\n    -- turn 0: ' in text
    assert "\n    < 42\n" in text
