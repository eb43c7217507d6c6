from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from mloc_dagster.api.acceptance import Acceptance
from mloc_dagster.api.compiled_bodies import CompiledBodies
from mloc_dagster.api.limits import Limits
from mloc_dagster.api.metrics import Metrics
from mloc_dagster.api.submission_body import SubmissionBody
from mloc_dagster.compile import compile_files, compile_mapping
from mloc_dagster.events import Payload, TaskEvent, TaskEventType, TrainingFigures, open_redis, send
from mloc_dagster.executors import task_record
from mloc_dagster.results import write_record
from mloc_dagster.settings import settings
from mloc_dagster.wire import Finding, SubmitReply, TaskPage, TaskState
from tests.api_server import ECHO, STAGES, Served, serving
from tests.memory_ledger import MemoryLedger

SFT = """\
apiVersion: mloc/v1
kind: TrainingTask
metadata: {name: taught}
spec:
  taskType: sft
  model: {source: {type: builtin, identifier: tiny-chat}}
  data: {rows: [{text: a}]}
"""


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.mark.parametrize(
    "request_body",
    [
        {"content": ECHO},
        {"content": ECHO, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"json": ECHO},
        {"json": {"yaml": ECHO}},
        {"files": {"template": ("hello.yaml", ECHO)}},
        {"files": {"anything": ("hello.yaml", ECHO)}},
        {"json": {
            "apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": "hello"},
            "spec": {"taskType": "echo", "data": {"type": "list", "items": ["one", "two"]}},
        }},
    ],
)  # fmt: skip
def test_every_form_of_a_template_is_accepted(api: Served, request_body: dict) -> None:
    answer = api.client.post("/api/v1/tasks", **request_body)

    assert answer.status_code == 202, answer.text
    (task,) = SubmitReply.model_validate_json(answer.content).tasks
    assert api.ledger.task(task.task_id).rows == 2
    assert (task.status, task.template) == (TaskState.PENDING, "hello")


def test_several_documents_are_accepted_together_or_not_at_all(api: Served) -> None:
    other = ECHO.replace("hello", "other")
    good = api.client.post("/api/v1/tasks", content=f"{ECHO}---\n{other}")
    bad = api.client.post("/api/v1/tasks", content=f"{ECHO}---\n{other}  typo: 1\n")

    assert [each["template"] for each in good.json()["tasks"]] == ["hello", "other"]
    assert bad.status_code == 422
    assert len(api.ledger.entries) == 2


def test_stages_are_tasks_of_one_workflow_and_wait(api: Served) -> None:
    answer = api.client.post("/api/v1/tasks", content=STAGES).json()

    first, second = answer["tasks"]
    assert first["task_id"] == f"{first['workflow_id']}-first"
    assert (first["status"], second["status"]) == ("PENDING", "WAITING")
    assert second["depends_on"] == ["first"]
    workflow = api.client.get(f"/api/v1/workflows/{first['workflow_id']}").json()
    assert [each["node"] for each in workflow["tasks"]] == ["first", "second"]


def test_errors_are_those_of_the_command_line(api: Served, tmp_path: Path) -> None:
    wrong = ECHO.replace("echo\n", "ecko\n") + "  colour: red\n"
    path = tmp_path / "body.yaml"
    path.write_text(wrong)
    _, findings = compile_files([path])

    answer = api.client.post("/api/v1/tasks", content=wrong)

    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (422, "urn:mloc:invalid-template")
    shown = [str(Finding.model_validate(each)) for each in problem["errors"]]
    assert shown == [str(each).replace(str(path), "body.yaml") for each in findings]
    assert shown[0].startswith("body.yaml:5:13: spec.taskType: unknown task type 'ecko'")


def test_a_task_type_that_is_not_built_yet_is_refused_at_its_line(
    api: Served, unbuilt: str
) -> None:
    rag = """\
spec:
  taskType: rag
  data: {type: list, items: [a]}
  qdrant: {url: "https://qdrant.example", collection: c}
  embedding: {model: m}
"""
    answer = api.client.post("/api/v1/tasks", content=ECHO.partition("spec:")[0] + rag)
    assert answer.status_code == 422
    shown = [str(Finding.model_validate(each)) for each in answer.json()["errors"]]
    assert f"body.yaml:5:13: spec.taskType: task type {unbuilt!r} is not built yet" in shown[-1]
    assert sum("not built yet" in each for each in shown) == 1


def test_a_field_without_effect_is_in_the_reply(api: Served) -> None:
    answer = api.client.post("/api/v1/tasks", content=ECHO + "  echo: {seed: 3}\n")
    assert answer.status_code == 202
    (warning,) = answer.json()["warnings"]
    assert (warning["path"], warning["severity"]) == ("spec.echo.seed", "warning")
    assert "has no effect" in warning["message"]


def test_an_uploaded_template_is_named_in_its_errors(api: Served) -> None:
    wrong = ECHO.replace("echo\n", "ecko\n")
    answer = api.client.post("/api/v1/tasks", files={"template": ("nightly.yaml", wrong)})
    assert answer.json()["errors"][0]["file"] == "nightly.yaml"


def test_uploaded_data_is_kept_and_named_where_it_lies(api: Served) -> None:
    text = ECHO.replace("{type: list, items: [one, two]}", "{type: dataset, url: rows/in.jsonl}")
    files = [
        ("template", ("t.yaml", text)),
        ("file", ("rows/in.jsonl", b'{"text": "a"}\n')),
    ]
    answers = [api.client.post("/api/v1/tasks", files=files) for _ in range(2)]

    assert [each.status_code for each in answers] == [202, 202]
    urls = {each["spec"]["data"]["url"] for each in api.ledger.documents.values()}
    (url,) = urls
    assert Path(url).read_bytes() == b'{"text": "a"}\n'
    assert Path(url).parts[-3] == ".uploads"


def test_the_same_key_gives_the_same_answer(api: Served) -> None:
    key = {"Idempotency-Key": "once"}
    first = api.client.post("/api/v1/tasks", content=STAGES, headers=key)
    again = api.client.post("/api/v1/tasks", content=STAGES, headers=key)
    other = api.client.post("/api/v1/tasks", content=ECHO, headers=key)

    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert (other.status_code, other.json()["type"]) == (409, "urn:mloc:key-reused")
    assert len(api.ledger.entries) == 2


def test_submissions_that_arrive_together_share_a_commit() -> None:
    ledger = MemoryLedger()
    limits = Limits.of(settings())
    acceptance = Acceptance(ledger, CompiledBodies(limits), Metrics())  # type: ignore[arg-type]

    async def submit() -> list[str]:
        await acceptance.start()
        bodies = [SubmissionBody(ECHO.encode()) for _ in range(100)]
        answers = await asyncio.gather(*(acceptance.submit(each, None) for each in bodies))
        await acceptance.stop()
        return [reply.tasks[0].task_id for reply, _ in answers]

    ids = asyncio.run(submit())
    assert len(set(ids)) == len(ledger.entries) == 100
    assert sum(ledger.commits) == 100
    assert len(ledger.commits) < 20


def test_one_key_at_a_time_stands_in_a_commit() -> None:
    ledger = MemoryLedger()
    limits = Limits.of(settings())
    acceptance = Acceptance(ledger, CompiledBodies(limits), Metrics())  # type: ignore[arg-type]

    async def submit() -> list[bool]:
        await acceptance.start()
        body = SubmissionBody(ECHO.encode())
        answers = await asyncio.gather(*(acceptance.submit(body, "same") for _ in range(5)))
        await acceptance.stop()
        return [new for _, new in answers]

    assert sorted(asyncio.run(submit())) == [False] * 4 + [True]
    assert len(ledger.entries) == 1


def test_a_database_that_is_away_is_503_and_says_try_again() -> None:
    with serving() as api:
        api.ledger.failure = OperationalError("insert", {}, Exception("server closed"))
        answer = api.client.post("/api/v1/tasks", content=ECHO)
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "insert" not in answer.text


def test_lists_go_through_all_pages(api: Served) -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = set(pool.map(lambda _: api.submit(), range(25)))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        parameters = {"limit": 10, **({"cursor": cursor} if cursor else {})}
        page = TaskPage.model_validate_json(
            api.client.get("/api/v1/tasks", params=parameters).content
        )
        seen += [each.task_id for each in page.tasks]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == 25
    assert set(seen) == ids


def test_lists_are_filtered(api: Served) -> None:
    mine = api.submit()
    api.submit(STAGES)
    for query in (
        "owner=team-a",
        "name=hello&type=echo",
        "label=purpose=example",
        f"workflow_id={mine}",
        "status=PENDING&status=RUNNING&owner=team-a",
    ):
        found = api.client.get(f"/api/v1/tasks?{query}").json()["tasks"]
        assert [each["task_id"] for each in found] == [mine], query


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("stats=DONE", "did you mean 'status'?"),
        ("status=GOOD", "PENDING"),
        ("limit=0", "greater than or equal to 1"),
        ("label=purpose", "match"),
        ("since=yesterday", "a time is written as"),
    ],
)
def test_a_wrong_filter_is_said(api: Served, query: str, said: str) -> None:
    answer = api.client.get(f"/api/v1/tasks?{query}")
    assert answer.status_code == 422
    assert said in answer.json()["detail"]


def test_cancel_and_retry(api: Served) -> None:
    task = api.submit()
    url = f"/api/v1/tasks/{task}"
    assert api.client.post(f"{url}/retry").status_code == 409
    cancelled = api.client.post(f"{url}/cancel")
    assert (cancelled.status_code, cancelled.json()["tasks"][0]["status"]) == (202, "CANCELLED")
    assert api.client.post(f"{url}/cancel").status_code == 202
    again = api.client.post(f"{url}/retry", json={"scope": "failed_shards"})
    assert again.json()["tasks"][0]["status"] == "PENDING"


def test_a_dispatched_task_is_asked_to_stop(api: Served) -> None:
    task = api.submit()
    api.ledger.set(task, run_id="r", state=TaskState.RUNNING, batch_key="b")
    changed = api.client.post(f"/api/v1/tasks/{task}/cancel").json()["tasks"][0]
    assert changed == {"task_id": task, "status": "RUNNING", "cancelling": True}


def test_only_rows_that_failed_of_a_done_task_can_be_retried(api: Served) -> None:
    task = api.submit()
    api.ledger.set(task, run_id="r", state=TaskState.DONE, errors=1, batch_key="b")
    refused = api.client.post(f"/api/v1/tasks/{task}/retry")
    assert refused.status_code == 409
    assert "failed_rows" in refused.json()["detail"]
    assert (
        api.client.post(f"/api/v1/tasks/{task}/retry", json={"scope": "failed_rows"}).status_code
        == 202
    )


def test_a_workflow_is_cancelled_by_its_id(api: Served) -> None:
    first = api.submit(STAGES)
    workflow = first.removesuffix("-first")
    answer = api.client.post(f"/api/v1/tasks/{workflow}/cancel").json()
    assert [each["status"] for each in answer["tasks"]] == ["CANCELLED"] * 2


def test_progress_of_a_done_task(api: Served) -> None:
    task = api.submit()
    api.ledger.set(task, run_id="r", state=TaskState.DONE, rows_finished=2, errors=0)
    progress = api.client.get(f"/api/v1/tasks/{task}/progress").json()
    assert (progress["fraction"], progress["rows_finished"], progress["eta_s"]) == (1.0, 2, None)


def test_a_training_says_how_far_it_is(
    api: Served, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = api.submit(SFT)
    assert api.client.get(f"/api/v1/tasks/{task_id}").json()["training"] is None
    template = compile_mapping(dict(api.ledger.documents[task_id]))
    record = task_record(task_id, template, template.tasks[0], task_id, "run", {})
    write_record(api.folder(task_id), record)
    api.ledger.set(task_id, run_id="run", state=TaskState.RUNNING)
    figures = TrainingFigures(step=7, steps=48, steps_per_s=0.5, metrics={"loss": 0.75})
    told = TaskEvent(
        type=TaskEventType.TASK_PROGRESS,
        task_id=task_id,
        run_id="run",
        node="taught",
        payload=Payload(training=figures, eta_s=82.0),
    )
    with open_redis(redis_url) as client:
        send(client, [told])
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    shown = api.client.get(f"/api/v1/tasks/{task_id}").json()["training"]
    assert (shown["step"], shown["steps"], shown["metrics"]) == (7, 48, {"loss": 0.75})
    assert 0 < shown["eta_s"] <= 82


def test_what_is_unknown_is_404(api: Served) -> None:
    for path in ("tasks/nobody", "tasks/nobody/logs", "workflows/nobody", "results/nobody"):
        answer = api.client.get(f"/api/v1/{path}")
        assert answer.status_code == 404, path
        assert answer.headers["content-type"] == "application/problem+json"


def test_health_needs_no_redis_and_metrics_count(api: Served) -> None:
    api.submit()
    ready = api.client.get("/healthz/ready")
    assert ready.status_code == 200
    assert not ready.json()["checks"]["redis"]["ok"]
    text = api.client.get("/metrics").text
    assert 'mloc_tasks{state="PENDING"} 1.0' in text
    assert 'mloc_api_requests_total{method="POST",route="/api/v1/tasks",status="202"} 1.0' in text
    assert "mloc_api_accepted_tasks_total 1.0" in text


def test_the_document_describes_problems_and_examples(api: Served) -> None:
    document = api.client.get("/openapi.json").json()
    submit = document["paths"]["/api/v1/tasks"]["post"]
    assert set(submit["requestBody"]["content"]) == {
        "application/yaml", "text/plain", "application/json", "multipart/form-data",
    }  # fmt: skip
    assert "application/problem+json" in submit["responses"]["422"]["content"]
    example = submit["requestBody"]["content"]["application/yaml"]["example"]
    assert api.client.post("/api/v1/tasks", content=example).status_code == 202
    assert "HTTPValidationError" not in json.dumps(document)
