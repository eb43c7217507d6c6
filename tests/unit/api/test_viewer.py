"""The viewer in the API: who may see it, and what its answers let a browser do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.results import Folder, OutputRow, open_store
from mloc_dagster.settings import settings
from tests.api_server import Served, serving
from tests.viewed_task import make_task

HTML = {"Accept": "text/html"}


@pytest.fixture
def folder() -> Folder:
    rows = [{"question": "<b>q</b>", "answer": "a"}, {"question": "r", "answer": "b"}]
    outputs = [OutputRow(0, "<b>q</b>", "<script>alert(1)</script>"), OutputRow(1, "r", "s")]
    return make_task(open_store(), "t", rows, outputs)


@pytest.fixture
def api() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def guarded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("MLOC_API_TOKEN", "s3cret, with signs;")
    settings.cache_clear()
    with serving() as served:
        yield served


def sign_in(api: Served, token: str = "s3cret, with signs;", **more: str):
    return api.client.post("/ui/login", data={"token": token, **more}, follow_redirects=False)


def test_who_signed_in_sees_pages_until_signing_out(guarded: Served, folder: Folder) -> None:
    client = guarded.client
    sent = client.get("/ui/tasks/t?where=index+%3C+1", headers=HTML, follow_redirects=False)
    assert sent.status_code == 303
    assert (
        sent.headers["location"] == "/ui/login?next=%2Fui%2Ftasks%2Ft%3Fwhere%3Dindex%2B%253C%2B1"
    )
    assert client.get("/ui/data/rows?task=t&column=output").status_code == 401
    assert client.get(sent.headers["location"]).status_code == 200
    wrong = sign_in(guarded, "wrong")
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    right = sign_in(guarded, next="/ui/tasks/t")
    assert (right.status_code, right.headers["location"]) == (303, "/ui/tasks/t")
    cookie = right.headers["set-cookie"]
    for said in ("HttpOnly", "SameSite=strict", "Path=/ui"):
        assert said in cookie
    assert "max-age" not in cookie.lower()
    assert client.get("/ui/tasks/t").status_code == 200
    assert client.get("/ui/data/rows?task=t&column=output").json()["selected"] == 2
    # The API itself takes no cookie: another page of this host could have it sent.
    assert client.get("/api/v1/tasks", headers={"Cookie": cookie}).status_code == 401
    client.post("/ui/logout")
    assert client.get("/ui/data/rows?task=t&column=output").status_code == 401


@pytest.mark.parametrize(
    "leads", ["//evil.example", "https://evil.example", "/ui//evil.example", "/api/v1/tasks",
              "/ui/\\evil.example", "/ui/x\r\nSet-Cookie: a=b", "javascript:alert(1)"],
)  # fmt: skip
def test_signing_in_leads_to_pages_of_the_viewer_only(guarded: Served, leads: str) -> None:
    assert sign_in(guarded, next=leads).headers["location"] == "/ui/"


def test_the_token_is_in_no_address_and_no_page(guarded: Served, folder: Folder) -> None:
    answers = [sign_in(guarded), sign_in(guarded, "almost-s3cret")]
    answers += [guarded.client.get(path) for path in ("/ui/", "/ui/login", "/ui/tasks/t")]
    for answer in answers:
        assert "s3cret" not in answer.text
        assert "s3cret" not in answer.headers.get("location", "")


def test_pages_run_scripts_of_this_server_only(api: Served, folder: Folder) -> None:
    for path in ("/ui/", "/ui/tasks/t", "/ui/compare?a=t&b=t", "/ui/tasks/none"):
        answer = api.client.get(path)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self';" in policy
        assert "unsafe" not in policy
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
        assert answer.headers["cache-control"] == "no-store"


def test_the_looks_are_kept_by_the_browser_and_tell_nothing(guarded: Served) -> None:
    page = guarded.client.get("/ui/login").text
    assert "/ui/static/app.css" in page
    vendored = guarded.client.get("/ui/static/vendor/uplot-1.6.32.min.js")
    assert "immutable" in vendored.headers["cache-control"]
    own = guarded.client.get("/ui/static/app.css")
    assert (own.status_code, own.headers["cache-control"]) == (200, "no-cache")


def test_the_root_leads_to_the_tasks_and_they_to_the_documentation(api: Served) -> None:
    page = api.client.get("/")
    assert (page.status_code, page.url.path) == (200, "/ui/")
    assert 'data-docs="/docs"' in page.text


def test_a_task_that_is_not_there_is_a_page_with_the_nearest_id(
    api: Served, folder: Folder
) -> None:
    page = api.client.get("/ui/tasks/tt")
    assert page.status_code == 404
    assert "did you mean" in page.text
    odd = api.client.get("/ui/tasks/%3Cscript%3E")
    assert odd.status_code == 404
    assert "<script>" not in odd.text


def test_a_task_that_waits_has_a_page(api: Served) -> None:
    task_id = api.submit()
    assert api.client.get(f"/ui/tasks/{task_id}").status_code == 200
    found = api.client.get(f"/ui/data/tasks/{task_id}").json()
    assert (found["said"], found["problems"]) == ("PENDING", [])
    assert api.client.get(f"/ui/data/rows?task={task_id}&column=output").json()["rows"] == []


@pytest.mark.parametrize(
    "path",
    [
        "/ui/data/tasks/../t",
        "/ui/data/tasks/%2e%2e/files/x",
        "/ui/data/tasks/t/files/../u/task.json",
        "/ui/data/tasks/t/files/%2e%2e/u/task.json",
        "/ui/data/tasks/t/files/shards/0000",
        "/ui/data/tasks/t/files/secret.txt",
        "/ui/data/tasks/t/image/input/images/../../task.json",
        "/ui/data/tasks/t/image/task.json",
        "/ui/data/rows?task=..&column=output",
        "/ui/data/rows?task=.secrets&column=output",
        "/ui/static/../app.py",
        "/ui/static/%2e%2e/app.py",
    ],
)
def test_no_path_leads_out_of_a_task(api: Served, folder: Folder, path: str) -> None:
    (Path(folder.store.url) / ".secrets").mkdir()
    (Path(folder.store.url) / ".secrets" / "t.json").write_text("{}")
    Path(folder.url, "secret.txt").symlink_to("/etc/hostname")
    assert api.client.get(path).status_code == 404


def test_images_come_from_the_folder_of_the_task_alone(api: Served, folder: Folder) -> None:
    names = [f"input/images/{each * 64}.png" for each in "ab"]
    folder.write_bytes(names[0], b"\x89PNG\r\n\x1a\n")
    Path(folder.url, names[1]).symlink_to("/etc/hostname")
    image = api.client.get(f"/ui/data/tasks/t/image/{names[0]}")
    assert (image.status_code, image.headers["content-type"]) == (200, "image/png")
    assert image.headers["content-security-policy"] == "sandbox"
    assert api.client.get(f"/ui/data/tasks/t/image/{names[1]}").status_code == 404


def test_files_of_the_manifest_are_downloads(api: Served, folder: Folder) -> None:
    listed = {each["name"] for each in api.client.get("/ui/data/tasks/t").json()["files"]}
    assert {"responses.json", "responses.parquet", "manifest.json"} <= listed
    file = api.client.get("/ui/data/tasks/t/files/responses.parquet")
    assert file.content == folder.read_bytes("responses.parquet")
    assert file.headers["content-disposition"] == 'attachment; filename="responses.parquet"'


def test_a_damaged_folder_says_what_is_damaged(api: Served, folder: Folder) -> None:
    folder.write_bytes("responses.parquet", b"PAR1 and no more")
    folder.write_bytes("task.json", b"{}")
    folder.write_bytes("summary.json", b"{")
    page = api.client.get("/ui/data/tasks/t").json()
    assert len(page["problems"]) == 2
    answer = api.client.get("/ui/data/rows?task=t&column=output")
    assert answer.status_code == 409
    assert "responses.parquet of t is damaged" in answer.json()["detail"]
    assert api.client.get("/ui/data/tasks").json()[0]["task_id"] == "t"


def test_wrong_questions_are_422(api: Served, folder: Folder) -> None:
    for asked, says in (
        ("where=outptu+%3D%3D+1", "did you mean 'output'"),
        ("sort=outptu", "did you mean 'output'"),
        ("start=-1", "start"),
        ("count=100000", "count"),
    ):
        answer = api.client.get(f"/ui/data/rows?task=t&column=output&{asked}")
        assert answer.status_code == 422
        assert says in answer.json()["detail"]
