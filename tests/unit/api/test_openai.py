"""What lies below `/v1` without a run: forms of errors, status, counts, model, ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from openai.types import Batch as OpenaiBatch

from mloc_dagster.api.openai.batch_state import counts_of, status_of
from mloc_dagster.api.openai.batches import defects_of
from mloc_dagster.api.openai.objects import Batch, RequestCounts, window_s
from mloc_dagster.data import scan_batch
from mloc_dagster.settings import settings
from mloc_dagster.tasks import asked_spec, batch_template
from mloc_dagster.wire import TaskState, TaskView
from tests.api_server import Served, serving

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


def task(state: TaskState, **fields: object) -> TaskView:
    return TaskView.model_validate(
        {
            "task_id": "a", "workflow_id": "a", "node": "batch", "task_type": "inference",
            "template": "batch", "status": state, "submitted_at": NOW, **fields,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("state", "fields", "status"),
    [
        (TaskState.PENDING, {}, "validating"),
        (TaskState.DISPATCHED, {}, "validating"),
        (TaskState.DISPATCHED, {"started_at": NOW}, "in_progress"),
        (TaskState.RUNNING, {"rows": 2, "rows_finished": 1}, "in_progress"),
        (TaskState.RUNNING, {"rows": 2, "rows_finished": 2}, "finalizing"),
        (TaskState.RUNNING, {"cancelling": True}, "cancelling"),
        (TaskState.DONE, {"errors": 2}, "completed"),
        (TaskState.CANCELLED, {}, "cancelled"),
        (TaskState.FAILED, {}, "failed"),
        (TaskState.DEAD, {}, "failed"),
    ],
)
def test_a_tasks_state_is_a_batchs_status(
    state: TaskState, fields: dict[str, object], status: str
) -> None:
    assert status_of(task(state, **fields)) == status


def test_rows_count_as_requests() -> None:
    running = TaskState.RUNNING
    assert counts_of(4, task(running)).completed == 0
    some = counts_of(4, task(running, rows=4, rows_finished=3, errors=1))
    assert (some.total, some.completed, some.failed) == (4, 2, 1)
    of_several = counts_of(4, task(running, rows=8, rows_finished=5))
    assert (of_several.completed, of_several.failed) == (2, 0)


def test_a_window_is_a_deadline_but_for_the_one_that_everybody_says() -> None:
    assert [window_s(each) for each in ("24h", "30m", "1h", "2d")] == [None, 1800, 3600, 172_800]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("tiny-chat", "builtin"), ("org/model", "huggingface"), ("/models/x", "local"),
     ("./x", "local"), ("~/x", "local")],
)  # fmt: skip
def test_a_models_name_is_built_in_a_folder_or_of_the_hub(name: str, kind: str) -> None:
    assert asked_spec(name)["model"] == {"source": {"type": kind, "identifier": name}}


def test_a_batchs_window_and_labels_are_in_its_template() -> None:
    template = batch_template("b.jsonl", asked_spec("x", vectors=True), labels={"a": "b"}, slo_s=60)
    assert template["kind"] == "EmbeddingTask"
    assert template["metadata"] == {"name": "batch", "labels": {"a": "b"}}
    assert isinstance(template["spec"], dict)
    assert template["spec"]["slo"] == {"seconds": 60}
    assert template["spec"]["pooling"] == {"error_budget": 1.0}


def test_every_defect_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    lines = [
        {"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "one"}},
        {"custom_id": "b", "url": "/v1/completions", "body": {"model": "two"}},
        {"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "three"}},
        [],
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    found = defects_of(scan_batch(str(path)), "/v1/chat/completions")
    assert [(each.code, each.line) for each in found] == [
        ("invalid_request_line", 3),
        ("invalid_request_line", 4),
        ("mismatched_endpoint", 2),
        ("mismatched_model", 2),
    ]
    named = defects_of(scan_batch(str(path)), "/v1/chat/completions", "tiny-chat")
    assert named == found[:-1]
    assert found[-1].message == (
        "body.model is 'two', but 'one' in line 1: one model answers a batch"
    )


def test_what_mloc_answers_is_a_batch_of_the_openai_package() -> None:
    batch = Batch(
        id="batch_a", endpoint="/v1/embeddings", input_file_id="file-a", completion_window="24h",
        status="validating", created_at=1,
        request_counts=RequestCounts(total=1, completed=0, failed=0),
    )  # fmt: skip
    OpenaiBatch.model_validate_json(batch.model_dump_json(), strict=True)


def test_all_refusals_below_v1_have_openais_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_TOKEN", "right")
    monkeypatch.setenv("MLOC_API_MAX_UPLOAD_BYTES", "1000")
    settings.cache_clear()
    with serving() as api:
        right = {"Authorization": "Bearer right"}
        upload = {"file": ("a.jsonl", b"x" * 2_000)}
        get = api.client.get
        wrong = "invalid_request_error"
        for answer, status, kind, code in (
            (get("/v1/files"), 401, "authentication_error", "invalid_api_key"),
            (api.client.post("/v1/files", files=upload, headers=right), 413, wrong, "too_large"),
            (get("/v1/files", headers={**right, "Host": "evil.example"}), 421, wrong,
             "unknown_host"),
            (get("/v1/files", headers={**right, "Origin": "https://evil.example"}), 403,
             "permission_error", "cross_origin"),
            (get("/v1/nothing", headers=right), 404, wrong, "not_found"),
            (api.client.put("/v1/files", headers=right), 405, wrong, "method_not_allowed"),
            (get("/v1/files/file-x", headers=right), 404, wrong, "unknown_file"),
            (api.client.post("/v1/batches", json={}, headers=right), 400, wrong, None),
        ):  # fmt: skip
            assert answer.status_code == status, answer.text
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == (kind, code)
            assert answer.headers["content-type"] == "application/json"
        assert error["param"] == "input_file_id"
        assert api.client.get("/api/v1/nothing", headers=right).json()["status"] == 404


def test_without_a_token_any_key_opens_the_api(api: Served) -> None:
    answer = api.client.get("/v1/batches/x", headers={"Authorization": "Bearer whatever"})
    assert answer.status_code == 404


def test_the_document_lists_the_routes_with_openais_errors(api: Served) -> None:
    document = api.client.get("/openapi.json").json()
    routes = {path: set(each) for path, each in document["paths"].items() if path[:4] == "/v1/"}
    assert routes == {
        "/v1/files": {"get", "post"},
        "/v1/files/{file_id}": {"get", "delete"},
        "/v1/files/{file_id}/content": {"get"},
        "/v1/batches": {"get", "post"},
        "/v1/batches/{batch_id}": {"get"},
        "/v1/batches/{batch_id}/cancel": {"post"},
        "/v1/chat/completions": {"post"},
        "/v1/completions": {"post"},
        "/v1/embeddings": {"post"},
        "/v1/models": {"get"},
        "/v1/models/{model}": {"get"},
    }
    for path, methods in routes.items():
        for method in methods:
            answers = document["paths"][path][method]["responses"]
            assert "422" not in answers
            assert answers["400"]["content"]["application/json"]["schema"] == {
                "$ref": "#/components/schemas/ErrorReply"
            }
