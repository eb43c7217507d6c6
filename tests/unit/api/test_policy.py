"""What the API refuses of a template, where it stands, and what nobody may leave with a task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.results import is_own_name
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState
from tests.api_server import ECHO, STAGES, Served, serving

TEMPLATES = Path(__file__).parents[2] / "templates"

MODEL = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: m}
spec:
  taskType: inference
  model:
    source: {type: builtin, identifier: tiny-chat}
    engine: vllm
    vllm: {enforce_eager: true}
  data: {type: list, items: [hi]}
"""
TRAINING = """\
apiVersion: mloc/v1
kind: SFTTask
metadata: {name: t}
spec:
  taskType: sft
  model: {source: {type: builtin, identifier: tiny-chat}}
  data: {rows: [{prompt: a, completion: b}]}
  training: {max_steps: 1}
"""


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


def refusals(api: Served, text: str) -> list[tuple[int, str]]:
    """Returns the line and the message of everything that is wrong with a template."""
    answer = api.client.post("/api/v1/tasks", content=text)
    assert answer.status_code == 422, answer.text
    assert not api.ledger.entries
    return [(each["line"], each["message"]) for each in answer.json()["errors"]]


def test_plain_templates_are_accepted(api: Served) -> None:
    for text in (MODEL, TRAINING, ECHO, STAGES):
        assert api.client.post("/api/v1/tasks", content=text).status_code == 202


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("enforce_eager: true", "scheduler_cls: results.x.m.X", 9, "model.vllm.scheduler_cls"),
        ("enforce_eager: true", "reasoning_parser_plugin: a.py", 9, "reasoning_parser_plugin"),
        ("builtin, identifier: tiny-chat", "local, identifier: /etc", 7, "MLOC_API_DATA_ROOTS"),
        ("list, items: [hi]", "dataset, url: /etc/hosts.txt", 10, "MLOC_API_DATA_ROOTS"),
        ("list, items: [hi]", "dataset, url: 'http://127.0.0.1/a.txt'", 10, "PRIVATE_ADDRESSES"),
        ("list, items: [hi]", "dataset, url: 'reference://x.txt::file:///a'", 10, "chains"),
        ("list, items: [hi]", "dataset, url: 'webhdfs://127.0.0.1/a.txt'", 10, "webhdfs://"),
        (
            "vllm: {enforce_eager: true}",
            "adapters: [{url: 'http://169.254.169.254/a.zip'}]",
            9,
            "link-local",
        ),
    ],
)
def test_what_a_template_may_not_reach_is_refused_where_it_stands(
    api: Served, old: str, new: str, line: int, said: str
) -> None:
    found = refusals(api, MODEL.replace(old, new))
    assert [each for each in found if each[0] == line and said in each[1]], found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("max_steps: 1", "report_to: wandb", "training.report_to"),
        ("max_steps: 1", "max_steps: 1, deepspeed: {tensorboard: {enabled: true}}", "deepspeed"),
        (
            "training:",
            "checkpoint: {load: {url: 'simplecache::http://10.0.0.1/a.zip'}}\n  training:",
            "chains",
        ),
        (
            "training:",
            "evaluation: {data: {rows: [{prompt: a, completion: b}]}, "
            "harness: {tasks: [a], include_path: results/x}}\n  training:",
            "evaluation.harness.include_path",
        ),
    ],
)
def test_what_a_training_may_not_reach_is_refused(
    api: Served, old: str, new: str, said: str
) -> None:
    found = refusals(api, TRAINING.replace(old, new))
    assert [each for each in found if said in each[1]], found


def test_the_operator_allows_single_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOC_API_OPTIONS", "model.vllm.hf_overrides")
    settings.cache_clear()
    text = MODEL.replace("enforce_eager: true", "hf_overrides: {a: x}")
    with serving() as api:
        assert api.client.post("/api/v1/tasks", content=text).status_code == 202


HOOK = (
    ECHO
    + "  output: {destination: {type: http, url: 'https://93.184.215.14/x', headers: {X: y}}}\n"
)


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("X: y", "X: 'Bearer ${MLOC_POSTGRES_URL}'", "MLOC_POSTGRES_URL"),
        ("X: y", "X: '$${HOME}'", "HOME"),
        ("93.184.215.14", "127.0.${SHLVL}.1", "SHLVL"),
    ],
)
def test_variables_of_the_workers_are_the_operators(
    api: Served, old: str, new: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.client.post("/api/v1/tasks", content=HOOK).status_code == 202
    api.ledger.entries.clear()
    ((line, message),) = refusals(api, HOOK.replace(old, new))
    assert (line, name in message, "MLOC_API_VARIABLES" in message) == (7, True, True)
    monkeypatch.setenv("MLOC_API_VARIABLES", name)
    settings.cache_clear()
    with serving() as other:
        text = HOOK.replace(old, new)
        assert other.client.post("/api/v1/tasks", content=text).status_code == 202


ASKED = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: m}
spec:
  taskType: inference
  model:
    source: {type: openai, identifier: m, base_url: "http://127.0.0.1:9/v1", api_key: "sk-mine"}
  data: {type: list, items: [hi]}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("127.0.0.1:9", "93.184.215.14"),
        ("http://127.0.0.1:9/v1", "${ENDPOINT}"),
        ("http://127.0.0.1:9/v1", "${ENV:ENDPOINT}"),
        ("127.0.0.1:9/v1", "api.example.org/v1/../../other"),
    ],
)
def test_endpoints_are_the_operators(
    api: Served, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    monkeypatch.setenv("MLOC_API_VARIABLES", "ENDPOINT")
    monkeypatch.setenv("MLOC_API_ENDPOINTS", "https://api.example.org/v1")
    settings.cache_clear()
    ((line, message),) = refusals(api, ASKED.replace(old, new))
    assert (line, "MLOC_API_ENDPOINTS" in message) == (7, True)


def test_a_listed_endpoint_may_be_named_wherever_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_ENDPOINTS", "http://127.0.0.1:9/v1=SOME_KEY")
    settings.cache_clear()
    with serving() as api:
        assert api.client.post("/api/v1/tasks", content=ASKED).status_code == 202
        api.ledger.entries.clear()
        ((_, message),) = refusals(api, ASKED.replace("sk-mine", "${SOME_KEY}"))
        assert "MLOC_API_VARIABLES" in message


@pytest.mark.parametrize("path", [f".uploads/{'0' * 64}", "./.submitted", ".dagster/latest"])
def test_copies_go_into_no_folder_of_mlocs_own(api: Served, path: str) -> None:
    text = ECHO + f"  output: {{destination: {{type: local, path: '{path}'}}}}\n"
    assert any("only mloc itself" in message for _, message in refusals(api, text))


def test_uploads_may_be_named_by_every_field_that_reads_files(api: Served) -> None:
    text = MODEL.replace("enforce_eager: true", "seed: 1").replace(
        "    engine: vllm\n", "    engine: vllm\n    adapters: [{path: a.tar.gz}]\n"
    )
    text = text.replace("list, items: [hi]", "dataset, url: rows.txt")
    files = [
        ("template", ("t.yaml", text)),
        ("file", ("a.tar.gz", b"x")),
        ("file", ("rows.txt", b"x")),
    ]
    answer = api.client.post("/api/v1/tasks", files=files)
    assert answer.status_code == 202, answer.text


def test_a_file_that_stands_where_an_upload_goes_is_replaced(api: Served) -> None:
    rows = b"mine"
    folder = api.folder("x").store.folder(f".uploads/{hashlib.sha256(rows).hexdigest()}")
    folder.write_bytes("rows.txt", b"planted")
    text = ECHO.replace("list, items: [one, two]", "dataset, url: rows.txt")
    files = [("template", ("t.yaml", text)), ("file", ("rows.txt", rows))]
    assert api.client.post("/api/v1/tasks", files=files).status_code == 202
    assert folder.read_bytes("rows.txt") == rows


OWN = [
    *("task.json", "plan.json", "manifest.json", "summary.json", "training.json"),
    *("responses.json", "responses.csv", "responses.parquet", "Responses.csv"),
    *("final_model/model.safetensors", "final_lora.zip", "trained_model/config.json"),
    *("checkpoints/checkpoint-9/x", "archives/final_model.zip", "logs/shard-0000.log"),
    *("input/train.jsonl", "shards/0000/x", "evaluation-before.json", "batch_output.jsonl"),
    ".row-cache/x",
]


@pytest.mark.parametrize("name", OWN)
def test_nobody_leaves_a_file_by_a_name_that_mloc_writes(api: Served, name: str) -> None:
    task = api.submit()
    url = f"/api/v1/results/{task}/files"
    for state in (TaskState.PENDING, TaskState.WAITING, TaskState.RUNNING, TaskState.DONE):
        api.ledger.set(task, state=state)
        answer = api.client.post(url, files={"file": (name, b"forged")})
        assert (answer.status_code, answer.json()["type"]) == (409, "urn:mloc:is-ours")
    assert not api.folder(task).list()


def test_files_are_left_with_a_task_once_it_has_ended(api: Served) -> None:
    task = api.submit()
    url = f"/api/v1/results/{task}/files"
    api.ledger.set(task, state=TaskState.RUNNING)
    answer = api.client.post(url, files={"file": ("notes.txt", b"mine")})
    assert (answer.status_code, "once it has ended" in answer.json()["detail"]) == (409, True)
    api.ledger.set(task, state=TaskState.DONE)
    assert api.client.post(url, files={"file": ("notes.txt", b"mine")}).status_code == 201


def test_own_names_are_no_others() -> None:
    assert not [name for name in ("notes.txt", "plots/task.png", "a/logs/x") if is_own_name(name)]


@pytest.mark.parametrize("name", ["graph", "lora_stages", "sft", "stages"])
def test_templates_that_name_hub_models_and_hub_data_are_accepted(api: Served, name: str) -> None:
    text = (TEMPLATES / f"{name}.yaml").read_text()
    answer = api.client.post("/api/v1/tasks", content=text)
    assert answer.status_code == 202, answer.text
