"""Agents over vLLM's OpenAI server: templates in the old spelling, and a task that is killed.

A folder of older templates is taken as a whole where it lies beside the checkout, or where
`OLD_TEMPLATES` says.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import dagster as dg
import httpx
import pytest
import yaml

pytest.importorskip("vllm")
pytest.importorskip("pydantic_ai")
pytest.importorskip("openai")

from mloc_dagster.compile import compile_mapping
from mloc_dagster.local_run import run_template
from mloc_dagster.results import open_store, verify_manifest
from tests.e2e.conftest import ROOT
from tests.vllm_server import vllm_server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

OLD = Path(os.environ.get("OLD_TEMPLATES", ROOT.parent / "shared" / "upstream_templates"))
PATIENCE_S = 300
Body = dict[str, Any]


class Server:
    """An HTTP server of the tests, and the bodies that were sent to it."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers["Content-Length"]))
                server.bodies.append(json.loads(data))
                self._send(*server.answer(self.path, data))

            def do_GET(self) -> None:
                self._send(*server.answer(self.path, b""))

            def _send(self, status: int, data: bytes) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    self.close_connection = True  # who asked was killed

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def answer(self, path: str, data: bytes) -> tuple[int, bytes]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Recorder(Server):
    """Hands requests on to the real server: the first `freely` at once, others after `go_on`."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._to = url
        self.freely = sys.maxsize
        self._taken = itertools.count()
        self.go_on = threading.Event()

    def __exit__(self, *raised: object) -> None:
        self.go_on.set()
        super().__exit__(*raised)

    def answer(self, path: str, data: bytes) -> tuple[int, bytes]:
        if data and next(self._taken) >= self.freely:
            self.go_on.wait()
        to = self._to + path.removeprefix("/v1")
        method = "POST" if data else "GET"
        headers = {"Content-Type": "application/json"}
        found = httpx.request(method, to, content=data, headers=headers, timeout=PATIENCE_S)
        return found.status_code, found.content


class Searches(Server):
    """Answers as Serper does."""

    def answer(self, path: str, data: bytes) -> tuple[int, bytes]:
        found = {"title": "Peru", "link": "https://example.org/peru", "snippet": "Lima"}
        return 200, json.dumps({"organic": [found]}).encode()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    calls = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with vllm_server(log, *calls, model="tiny-tools") as url:
        yield url


@pytest.fixture
def recorder(vllm: str) -> Iterator[Recorder]:
    with Recorder(vllm) as found:
        yield found


@pytest.fixture
def searches(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searches]:
    """A search provider, beside a model for the presets."""
    with Searches() as found:
        for name, value in {
            "UTU_LLM_TYPE": "chat.completions",
            "UTU_LLM_MODEL": "tiny-tools",
            "UTU_LLM_BASE_URL": f"{recorder.url}/v1",
            "UTU_LLM_API_KEY": "k",
            "SERPER_API_KEY": "k",
            "MLOC_SERPER_URL": f"{found.url}/search",
        }.items():
            monkeypatch.setenv(name, value)
        yield found


def documents(path: Path) -> Iterator[Any]:
    for each in yaml.safe_load_all(path.read_text()):
        yield pytest.param(each, id=f"{path.stem}-{each['metadata']['name']}")


def agent_documents() -> Iterator[Any]:
    yield from documents(ROOT / "tests" / "templates" / "agents.yaml")
    for path in sorted(OLD.glob("*.yaml")):
        yield from (each for each in documents(path) if each.values[0]["kind"] == "AgentTask")


def localised(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a template whose dataset of the hub is a file."""
    found: dict[str, Any] = json.loads(json.dumps(document))
    data = found["spec"].get("data", {})
    if "url" in data:
        rows = [{data["column"]: f"What is the capital of Peru {n}?"} for n in range(8)]
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        data["url"] = str(folder / "rows.jsonl")
    return found


@pytest.mark.parametrize("document", list(agent_documents()))
def test_each_old_template_runs(
    document: Mapping[str, Any],
    searches: Searches,
    recorder: Recorder,
    instance: dg.DagsterInstance,
    tmp_path: Path,
) -> None:
    outcome = run_template(compile_mapping(localised(document, tmp_path)), instance)
    assert outcome.succeeded, outcome.failures
    (task,) = outcome.tasks
    folder = open_store().task(task.task_id)
    assert verify_manifest(folder) == ()
    result = json.loads(folder.read_bytes("responses.json"))["result"]
    assert result["ok"] is True
    assert result["model"] == "tiny-tools"
    assert all(each["stop"] in ("answer", "max_steps") for each in result["items"])
    counts = result["metadata"]["batch_summary"]
    assert counts == {"total_tasks": len(result["items"]), "completed": counts["completed"],
                      "failed": 0}  # fmt: skip
    assert result["usage"]["agent_config"] == document["spec"]["configName"]
    assert len(recorder.bodies) == sum(each["steps"] for each in result["items"])
    for name in document["spec"]["output"]["artifacts"]:
        assert folder.list(name.rstrip("/")) or folder.exists(name)
    if "search" in document["spec"]["configName"]:
        assert {"search"} <= {each["function"]["name"] for each in recorder.bodies[0]["tools"]}
        calls = [each for item in result["items"] for each in item.get("tool_calls") or ()]
        made = [each for each in calls if each["function"]["name"] == "search"]
        assert len(searches.bodies) == len(made)


def test_a_missing_search_key_is_named_before_the_model_is_asked(
    searches: Searches,
    recorder: Recorder,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SERPER_API_KEY")
    documents = yaml.safe_load_all((ROOT / "tests" / "templates" / "agents.yaml").read_text())
    document = next(each for each in documents if each["spec"]["configName"] == "simple_search")
    outcome = run_template(compile_mapping(document), instance)
    assert not outcome.succeeded
    assert "SERPER_API_KEY" in str(outcome.failures)
    assert recorder.bodies == []


ROWS = 16
TEMPLATE = """\
apiVersion: mloc/v1
kind: AgentTask
metadata: {name: reckoned}
spec:
  model:
    source: {type: openai, identifier: tiny-tools, base_url: "${ENDPOINT}"}
    openai: {max_concurrency: 4, max_retries: 0}
  data: {type: dataset, url: ./rows.txt}
  parallel: {max_shards: 1}
  inference: {temperature: 0, max_tokens: 64}
  agent:
    instructions: null  # the model that ships knows no others than its own
    tools:
      - {entry_point: calculator, effect: read}
"""


def test_a_killed_agent_asks_the_endpoint_for_no_turn_twice(
    recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "reckoned.yaml").write_text(TEMPLATE)
    (tmp_path / "rows.txt").write_text("".join(f"What is {n + 12} * 7?\n" for n in range(ROWS)))
    results = tmp_path / "results"
    recorder.freely = ROWS
    with tempfile.TemporaryDirectory(prefix="mloc-") as home:
        environment = {
            **os.environ,
            "MLOC_HOME": home,
            "MLOC_RESULTS_URL": str(results),
            "MLOC_FLUSH_ROWS": "1",
            "ENDPOINT": f"{recorder.url}/v1",
        }

        def start(*arguments: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "mloc_dagster.cli", "run", *arguments, "-q"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

        first = start("reckoned.yaml")
        deadline = time.monotonic() + PATIENCE_S
        while len(recorder.bodies) <= ROWS or len(turns_of(results)) < ROWS:
            assert first.poll() is None, first.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        first.communicate()
        noted = turns_of(results)
        recorder.go_on.set()
        (record,) = results.glob("*/task.json")
        second = start("--resume", record.parent.name)
        said, _ = second.communicate(timeout=PATIENCE_S)
        assert second.returncode == 0, said
    items = json.loads((record.parent / "responses.json").read_text())["result"]["items"]
    assert len(items) == ROWS
    assert all(each["stop"] == "answer" for each in items)
    assert any(each["steps"] > 1 for each in items)
    asked = Counter(map(turn_of, recorder.bodies))
    assert set(asked) == {(each["index"], turn) for each in items for turn in range(each["steps"])}
    # What the journal had is not asked for again; what was in flight is, once.
    assert {turn for turn, times in asked.items() if times > 1}.isdisjoint(noted)
    assert 0 < sum(asked.values()) - len(asked) <= 4


def turns_of(results: Path) -> set[tuple[int, int]]:
    """Returns the turns of the model that the journals of all tasks have."""
    return {
        (entry["index"], entry["turn"])
        for path in results.glob("*/journal/*/*.jsonl")
        for entry in map(json.loads, path.read_text().split("\n")[:-1])  # whole lines
        if entry["type"] == "model"
    }


def turn_of(body: Body) -> tuple[int, int]:
    """Returns which turn of which row a request asks for."""
    said = [each["content"] for each in body["messages"] if each["role"] == "user"]
    turns = sum(each["role"] == "assistant" for each in body["messages"])
    return int(said[0].split()[2]) - 12, turns
