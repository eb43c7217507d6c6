from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mloc_dagster.api.auth import Tokens
from mloc_dagster.api.parameters import safe_name
from mloc_dagster.api.problems import Refusal
from mloc_dagster.settings import settings
from tests.api_server import ECHO, Served, serving

MODEL = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: m}
spec:
  taskType: inference
  model:
    source: {type: builtin, identifier: tiny-chat, trust_remote_code: CODE}
  data: {type: list, items: [hi]}
"""


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("MLOC_API_MAX_BODY_BYTES", "2000")
    monkeypatch.setenv("MLOC_API_MAX_UPLOAD_BYTES", "4000")
    monkeypatch.setenv("MLOC_API_MAX_RESULT_BYTES", "3000")
    monkeypatch.setenv("MLOC_API_MAX_ROWS", "5")
    monkeypatch.setenv("MLOC_API_MAX_DOCUMENTS", "2")
    settings.cache_clear()
    with serving() as served:
        yield served


def test_a_schedule_is_refused_where_it_stands(api: Served) -> None:
    text = ECHO.replace("spec:\n", "spec:\n  schedule: {cron: '0 6 * * *'}\n", 1)
    answer = api.client.post("/api/v1/tasks", content=text)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["path"]) == (422, "spec.schedule")
    assert "its schedule would never start" in error["message"]
    taken_out = text.replace("{cron: '0 6 * * *'}", "null")
    assert api.client.post("/api/v1/tasks", content=taken_out).status_code == 202


def test_partitions_are_refused_where_they_stand(api: Served) -> None:
    text = ECHO.replace("spec:\n", "spec:\n  partitions: {type: dynamic, name: books}\n", 1)
    answer = api.client.post("/api/v1/tasks", content=text)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["path"]) == (422, "spec.partitions")
    assert "`mloc launch --partition KEY`" in error["message"]
    taken_out = text.replace("{type: dynamic, name: books}", "null")
    assert api.client.post("/api/v1/tasks", content=taken_out).status_code == 202


def test_large_bodies_are_413_with_the_setting(small: Served) -> None:
    large = ECHO + "#" * 2000
    streamed = (large[start : start + 100].encode() for start in range(0, len(large), 100))
    for content in (large, streamed):
        answer = small.client.post("/api/v1/tasks", content=content)
        assert answer.status_code == 413
        assert "MLOC_API_MAX_BODY_BYTES" in answer.json()["detail"]
    upload = {"template": ("a.yaml", ECHO), "file": ("b.txt", "x" * 4000)}
    answer = small.client.post("/api/v1/tasks", files=upload)
    assert (answer.status_code, "UPLOAD" in answer.json()["detail"]) == (413, True)
    result = {"task_id": "a", "result": {"text": "x" * 3000}}
    assert small.client.post("/api/v1/results", json=result).status_code == 413
    assert not small.ledger.entries


def test_many_rows_and_documents_are_413(small: Served) -> None:
    rows = ECHO.replace("[one, two]", "[1, 2, 3, 4, 5, 6]".replace("1, 2", "a, b"))
    rows = rows.replace("3, 4, 5, 6", "c, d, e, f")
    answer = small.client.post("/api/v1/tasks", content=rows)
    assert (answer.status_code, "MLOC_API_MAX_ROWS" in answer.text) == (413, True)
    several = "---\n".join(ECHO.replace("hello", f"n{each}") for each in range(3))
    answer = small.client.post("/api/v1/tasks", content=several)
    assert (answer.status_code, "MLOC_API_MAX_DOCUMENTS" in answer.text) == (413, True)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5_000,
        "a: &a [x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
        + "".join(
            f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
            for before, name in zip("cdefgh", "defghi", strict=True)
        ),
        ECHO.replace("one", '"\\0"'),
        ECHO.replace("one", '"\\ud800"'),
        ECHO.replace("hello", '"he\\0llo"'),
        "{" * 20_000,
        '{"yaml": ' * 5_000,
        "!!python/object/apply:os.system ['true']",
        "\ufeff",
        "\0",
        "- just\n- a list\n",
        ECHO.replace("spec:", "spec:\n  slo: {seconds: 1.0e+300}"),
        ECHO.replace(
            "taskType: echo", f"stages: [{', '.join(f'{{name: s{n}}}' for n in range(65))}]"
        ),
    ],
)
def test_bombs_and_nonsense_are_422(api: Served, text: str) -> None:
    answer = api.client.post("/api/v1/tasks", content=text.encode("utf-8", "surrogatepass"))
    assert answer.status_code == 422, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert not api.ledger.entries


def test_code_that_comes_with_weights_is_the_operators_decision(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = MODEL.replace("CODE", "true")
    answer = api.client.post("/api/v1/tasks", content=asked)
    assert answer.status_code == 422
    assert "MLOC_TRUST_REMOTE_CODE" in answer.json()["detail"]
    assert answer.json()["errors"][0]["line"] == 7
    assert api.client.post("/api/v1/tasks", content=MODEL.replace("CODE", "no")).status_code == 202
    monkeypatch.setenv("MLOC_TRUST_REMOTE_CODE", "1")
    settings.cache_clear()
    with serving() as other:
        assert other.client.post("/api/v1/tasks", content=asked).status_code == 202


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://169.254.169.254/latest", "link-local"),
        ("http://[::ffff:169.254.169.254]/x", "link-local"),
        ("http://127.0.0.1:9000/hook", "MLOC_API_PRIVATE_ADDRESSES"),
        ("http://0x7f000001/hook", "MLOC_API_PRIVATE_ADDRESSES"),
        ("https://user:secret@10.1.2.3/hook", "MLOC_API_PRIVATE_ADDRESSES"),
    ],
)
def test_destinations_inside_are_refused(api: Served, url: str, said: str) -> None:
    text = ECHO + f"  output: {{destination: {{type: http, url: '{url}'}}}}\n"
    answer = api.client.post("/api/v1/tasks", content=text)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert "secret" not in answer.text


def test_private_destinations_are_allowed_where_the_operator_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLOC_API_PRIVATE_ADDRESSES", "1")
    settings.cache_clear()
    text = ECHO + "  output: {destination: {type: http, url: 'http://127.0.0.1:9/x'}}\n"
    with serving() as api:
        assert api.client.post("/api/v1/tasks", content=text).status_code == 202


@pytest.mark.parametrize(
    "name",
    [
        "..", "../x", "a/../../x", "/etc/passwd", "a//b", "a/./b", "a\0b", "a\\b", "", "a/",
        ".tmp-1", "\u2024\u2024/x", "\uff0e\uff0e/x", "a\uff0fb", "a\u202eb", "e\u0301", "a\nb",
        "x" * 300, "...", "a/ /b", "\ud800",
    ],
)  # fmt: skip
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(Refusal) as refused:
        safe_name(name)
    assert refused.value.status == 422
    refused.value.detail.encode("ascii", "strict")


@given(st.text(max_size=40))
def test_a_name_that_is_let_in_stays_inside(name: str) -> None:
    try:
        found = safe_name(name)
    except Refusal:
        return
    root = "/store/task"
    assert os.path.normpath(f"{root}/{found}") == f"{root}/{found}"
    assert "\0" not in found


@given(st.text(alphabet="./\\a\uff0e\uff0f\u2024%0", max_size=12))
def test_dots_and_slashes_of_any_alphabet_stay_inside(name: str) -> None:
    try:
        found = safe_name(name)
    except Refusal:
        return
    assert not {"..", "."} & set(found.split("/"))


def test_a_token_is_asked_for_everywhere_but_by_health(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLOC_API_TOKEN", "secret-1")
    settings.cache_clear()
    assert "secret-1" not in repr(settings())
    caplog.set_level(logging.DEBUG)
    with serving() as api:
        for path in ("/api/v1/tasks", "/metrics", "/workers", "/nope", "/docs/../metrics"):
            answer = api.client.get(path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["type"] == "urn:mloc:unauthorized"
        assert api.client.get("/healthz").status_code == 200
        assert api.client.get("/healthz/ready").status_code == 200
        for given_header in ("Bearer wrong", "secret-1", "Basic secret-1", "Bearer", "Bearer é"):
            answer = api.client.get(
                "/api/v1/tasks", headers={"Authorization": given_header.encode()}
            )
            assert answer.status_code == 401
        good = {"Authorization": "Bearer secret-1"}
        assert api.client.get("/api/v1/tasks", headers=good).status_code == 200
        document = api.client.get("/openapi.json", headers=good).json()
        assert document["security"] == [{"token": []}]
    assert "secret-1" not in caplog.text


def test_tokens_are_exchanged_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tokens"
    monkeypatch.setenv("MLOC_API_TOKEN_FILE", str(file))
    settings.cache_clear()

    def status(token: str) -> int:
        return api.client.get(
            "/api/v1/tasks", headers={"Authorization": f"Bearer {token}"}
        ).status_code

    with serving() as api:
        assert status("old") == 401  # no file yet: nobody
        file.write_text("# tokens\nold\n")
        assert status("old") == 200
        file.write_text("old\nnew\n")
        assert (status("old"), status("new")) == (200, 200)
        other = tmp_path / "next"
        other.write_text("new\n")
        other.replace(file)
        assert (status("old"), status("new")) == (401, 200)
        file.unlink()
        assert status("new") == 200  # while it is exchanged, the last ones hold
        file.write_text("")
        assert (status("new"), status("")) == (401, 401)


def test_without_a_token_nobody_is_asked() -> None:
    tokens = Tokens(None, None)
    assert not tokens.asked_for
    assert tokens.caller(None) == "-"


def test_a_defect_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(show_errors=False) as api:
        monkeypatch.setattr(api.ledger, "list", lambda *_, **__: 1 / 0)
        answer = api.client.get("/api/v1/tasks")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "division" not in answer.text
