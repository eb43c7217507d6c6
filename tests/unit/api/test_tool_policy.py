"""Tools of agents in templates that come over the API: code is the operator's to allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.compile import compile_text
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.settings import settings
from tests.api_server import Served, serving
from tests.tooled_task import ITEM_LINE, install, template
from tests.unit.executors.test_registry import plug_ins

__all__ = ["plug_ins"]

REMOTE = "mcp: {url: 'https://93.184.215.14/mcp'}"


@pytest.fixture
def api(plug_ins: Path) -> Iterator[Served]:
    install(plug_ins)
    with serving() as served:
        yield served


@pytest.mark.parametrize(
    "item",
    [
        "python: {}",
        "search: {provider: duckduckgo}",
        "http: {allow: [93.184.215.14, '*.example.org']}",
        "entry_point: calculator",
        REMOTE,
    ],
)
def test_tools_that_run_no_code_of_the_machine_are_accepted(api: Served, item: str) -> None:
    answer = api.client.post("/api/v1/tasks", content=template(item))
    assert answer.status_code == 202, answer.text


REFUSED = [
    ("mcp: {command: [uvx, mcp-server-time]}", "'uvx mcp-server-time' is code that the worker"),
    ("mcp: {command: [uvx, 'a b']}", "\"uvx 'a b'\" is code"),
    ("mcp: {command: [uvx, '${HOME}']}", "MLOC_API_TOOLS"),
    ("entry_point: my_tools.lookup", "'my_tools.lookup' is code that the worker would run"),
    ("http: {allow: [127.0.0.1]}", "MLOC_API_PRIVATE_ADDRESSES"),
    ("http: {allow: ['10.0.0.1:8080']}", "MLOC_API_PRIVATE_ADDRESSES"),
    ("http: {allow: ['[::1]']}", "MLOC_API_PRIVATE_ADDRESSES"),
    ("http: {allow: [169.254.169.254]}", "link-local"),
    ("mcp: {url: 'http://127.0.0.1:1/mcp'}", "MLOC_API_PRIVATE_ADDRESSES"),
    ("mcp: {url: 'http://169.254.169.254/'}", "link-local"),
    ("mcp: {url: 'https://93.184.215.14', headers: {A: '${HOME}'}}", "MLOC_API_VARIABLES"),
    ("mcp: {url: 'https://93.184.215.14/${HOME}'}", "MLOC_API_VARIABLES"),
]


@pytest.mark.parametrize(("item", "said"), REFUSED)
def test_others_are_refused_where_they_stand(api: Served, item: str, said: str) -> None:
    answer = api.client.post("/api/v1/tasks", content=template(item))
    assert answer.status_code == 422, answer.text
    assert not api.ledger.entries
    (error,) = answer.json()["errors"]
    assert error["line"] == ITEM_LINE
    assert said in error["message"]


def test_a_function_that_nobody_registered_is_refused_with_the_nearest(api: Served) -> None:
    answer = api.client.post("/api/v1/tasks", content=template("entry_point: calculatr"))
    assert answer.status_code == 422, answer.text
    said = [each["message"] for each in answer.json()["errors"]]
    assert "unknown tool 'calculatr'; did you mean 'calculator'?" in said


@pytest.mark.parametrize("file", ["/etc/passwd", "s3://bucket/../x.json", "facts.json"])
def test_a_table_of_facts_is_a_file_like_others(api: Served, file: str) -> None:
    item = f"{{entry_point: lookup, options: {{file: '{file}'}}}}"
    answer = api.client.post("/api/v1/tasks", content=template(item))
    assert answer.status_code == (202 if file.startswith("s3") else 422), answer.text


def allow(monkeypatch: pytest.MonkeyPatch, tools: str, options: str = "") -> None:
    monkeypatch.setenv("MLOC_API_TOOLS", tools)
    monkeypatch.setenv("MLOC_API_OPTIONS", options)
    settings.cache_clear()


TIME = "mcp: {command: [uvx, mcp-server-time]}"


@pytest.mark.parametrize(
    ("allowed", "item", "status"),
    [
        ("uvx mcp-server-time", TIME, 202),
        ("my_tools.lookup, uvx mcp-server-time", TIME, 202),
        ("my_tools.lookup, x", "entry_point: my_tools.lookup", 202),
        ("of.the.workers", "entry_point: of.the.workers", 202),
        ("uvx 'a b'", "mcp: {command: [uvx, a b]}", 202),
        ("uvx", TIME, 422),
        ("uvx mcp-server-time --x", TIME, 422),
        ("uvx mcp-server-time", "mcp: {command: [uvx, mcp-server-time, --x]}", 422),
        ("uvx mcp-server-time", "mcp: {command: [uvx mcp-server-time]}", 422),
        ("my_tools", "entry_point: my_tools.lookup", 422),
        ("my_tools.lookup", "entry_point: calculator", 422),
    ],
)
def test_the_operator_allows_code_by_its_whole_name(
    api: Served, monkeypatch: pytest.MonkeyPatch, allowed: str, item: str, status: int
) -> None:
    allow(monkeypatch, allowed)
    answer = api.client.post("/api/v1/tasks", content=template(item))
    assert answer.status_code == status, answer.text


def test_variables_of_a_program_are_the_operator_s_too(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(monkeypatch, "uvx mcp-server-time")
    item = "mcp: {command: [uvx, mcp-server-time], env: {LD_PRELOAD: /tmp/x.so}}"
    answer = api.client.post("/api/v1/tasks", content=template(item))
    assert answer.status_code == 422
    assert "MLOC_API_OPTIONS=tooled.tools.mcp.env.LD_PRELOAD" in answer.text
    allow(monkeypatch, "uvx mcp-server-time", "tooled.tools.mcp.env.TZ")
    assert api.client.post("/api/v1/tasks", content=template(item)).status_code == 422
    item = "mcp: {command: [uvx, mcp-server-time], env: {TZ: UTC}}"
    assert api.client.post("/api/v1/tasks", content=template(item)).status_code == 202


@pytest.mark.parametrize(
    ("item", "said"),
    [each for each in REFUSED if "ADDRESSES" not in each[1] and "link" not in each[1]],
)
def test_the_worker_refuses_them_as_well(plug_ins: Path, item: str, said: str) -> None:
    """Addresses it looks at when it connects."""
    install(plug_ins)
    (compiled,), findings = compile_text(template(item), "t.yaml")
    assert findings == []
    spec = compiled.tasks[0].mapping
    with pytest.raises(OutOfReachError) as raised:
        Reach("api").check_spec(dict(spec))
    assert said in str(raised.value)
    Reach().check_spec(dict(spec))


TRAINING = """\
apiVersion: mloc/v1
kind: GRPOTask
metadata: {name: t}
spec:
  model: {source: {type: builtin, identifier: tiny-tools}}
  data: {prompts: [a]}
  rewards: [{name: calls_tool}]
  training:
    tools:
      - effect: read
        %s
"""

KNOWN = [each for each in REFUSED if "my_tools" not in each[0]]


@pytest.mark.parametrize(("item", "said"), KNOWN)
def test_tools_of_a_training_are_refused_alike(api: Served, item: str, said: str) -> None:
    answer = api.client.post("/api/v1/tasks", content=TRAINING % item)
    assert answer.status_code == 422, answer.text
    assert said in " ".join(each["message"] for each in answer.json()["errors"])


def test_tools_of_a_training_are_accepted_alike(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for item in ("entry_point: calculator", "python: {}", REMOTE):
        answer = api.client.post("/api/v1/tasks", content=TRAINING % item)
        assert answer.status_code == 202, answer.text
    env = TIME.replace("]}", "], env: {TZ: UTC}}")
    allow(monkeypatch, "uvx mcp-server-time")
    answer = api.client.post("/api/v1/tasks", content=TRAINING % env)
    assert "MLOC_API_OPTIONS=training.tools.mcp.env.TZ" in answer.text
    allow(monkeypatch, "uvx mcp-server-time", "training.tools.mcp.env.TZ")
    assert api.client.post("/api/v1/tasks", content=TRAINING % env).status_code == 202


def test_secrets_of_a_training_s_tools_are_shown_to_nobody(api: Served) -> None:
    item = "mcp: {url: 'https://93.184.215.14/mcp', headers: {A: Bearer planted-secret}}"
    task = api.client.get(f"/api/v1/tasks/{api.submit(TRAINING % item)}")
    assert task.status_code == 200
    assert "planted-secret" not in task.text
