"""`mloc` over the real API, on a real ledger; a thread stands in for dispatcher and workers."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

import mloc_dagster.client
from mloc_dagster.api import create_app
from mloc_dagster.cli import api_choice, entry
from mloc_dagster.cli.api_choice import complete_task_ids, open_api
from mloc_dagster.client import Address, Client
from mloc_dagster.ledger import Ledger, PlannedRun, TaskChange, TaskEntry
from mloc_dagster.results import open_store
from mloc_dagster.settings import settings
from mloc_dagster.wire import TaskState
from tests.e2e.api_process import served
from tests.ports import free_port

pytestmark = pytest.mark.e2e

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: mine, owner: OWNER, labels: {team: a}}
spec:
  taskType: echo
  data: {type: list, items: [one, two]}
"""
ROWS = [{"index": 0, "output": "one"}, {"index": 1, "output": "two"}]


class Mloc:
    """The command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], ledger: Ledger, url: str) -> None:
        self._capsys = capsys
        self.err = ""
        self.ledger = ledger
        self.url = url

    def __call__(self, *arguments: str, code: int = 0) -> str:
        found = entry.run(arguments)
        out, self.err = self._capsys.readouterr()
        assert found == code, out + self.err
        return out if code == 0 else out + self.err

    def json(self, *arguments: str, code: int = 0):
        found = entry.run([*arguments, "--json"])
        out, err = self._capsys.readouterr()
        assert found == code, out + err
        return json.loads(out)

    def ends(self, task: TaskEntry, state: TaskState, error: str = "") -> None:
        """Plays dispatcher and worker."""
        run = PlannedRun(
            run_id=str(uuid.uuid4()), workflow_id=task.workflow_id, task_ids=(task.task_id,)
        )
        self.ledger.plan_runs([run])
        self.ledger.change(
            [
                TaskChange(
                    task_id=task.task_id, run_id=run.run_id, state=state, rows=2, error=error,
                    rows_finished=2 if state is TaskState.DONE else 1, errors=0,
                )
            ]
        )  # fmt: skip
        self.ledger.end_runs([run.run_id])
        folder = open_store().task(task.task_id)
        lines = "".join(json.dumps(each) + "\n" for each in ROWS)
        done = state is TaskState.DONE
        if done:  # a task that failed is aggregated, and not exported
            folder.write_bytes("responses.jsonl", lines.encode())
        document = {"task_id": task.task_id, "result": {"ok": done, "items": ROWS}}
        folder.write_bytes("responses.json", json.dumps(document).encode())
        folder.write_bytes("logs/shard-0000.log", b"2026-01-01T00:00:00.5Z warming up\n")


@pytest.fixture
def mloc(
    session_home: Path,
    redis_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Mloc]:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MLOC_API_TOKEN", "for-tests")
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    with closing(Ledger.open()) as ledger, served(create_app(ledger)) as url:
        monkeypatch.setenv("MLOC_API_URL", url)
        settings.cache_clear()
        yield Mloc(capsys, ledger, url)


@pytest.fixture
def owner(tmp_path: Path) -> str:
    name = f"owner-{uuid.uuid4().hex[:8]}"
    (tmp_path / "mine.yaml").write_text(TEMPLATE.replace("OWNER", name))
    return name


def submitted(mloc: Mloc, *options: str) -> str:
    (task,) = mloc.json("submit", "mine.yaml", *options)["tasks"]
    return task["task_id"]


def test_a_task_is_submitted_listed_and_shown(mloc: Mloc, owner: str) -> None:
    said = mloc("submit", "mine.yaml", "--set", "spec.echo.delay_s=1")
    assert said.startswith("task ")
    assert said.endswith("  mine\n")
    task_id = said.split()[1]
    (listed,) = mloc.json("list", "--owner", owner, "--status", "pending", "--label", "team=a")
    assert (listed["task_id"], listed["state"], listed["node"]) == (task_id, "PENDING", "mine")
    assert f"{task_id}   mine       api      PENDING" in mloc("list", "--owner", owner)
    shown = mloc("show", task_id)
    assert f"task      {task_id}\nstatus    PENDING\n" in shown
    assert "rows      0 of 2" in shown
    assert mloc.json("show", task_id)["tasks"][0]["status"] == "PENDING"
    assert mloc.json("list", "--owner", owner, "--status", "DEAD") == []
    assert mloc("list", "--owner", owner, "--status", "DEAD") == ""
    assert mloc.err == "no task matches\n"
    assert "did you mean 'DONE'" in mloc("list", "--status", "DONNE", code=2)


def test_the_same_key_is_the_same_task(mloc: Mloc, owner: str) -> None:
    key = uuid.uuid4().hex
    first = submitted(mloc, "--idempotency-key", key)
    assert submitted(mloc, "--idempotency-key", key) == first
    other = mloc(
        "submit", "mine.yaml", "--idempotency-key", key, "--set", "metadata.name=b", code=2
    )
    assert "Idempotency-Key" in other


def test_what_is_wrong_is_said_with_file_and_line(mloc: Mloc, owner: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(TEMPLATE.replace("items", "itens") + "  echoo: {}\n")
    said = mloc("submit", "mine.yaml", "bad.yaml", code=2)
    assert "task " in said
    assert "bad.yaml:6:22: spec.data.itens: unknown key 'itens'; did you mean 'items'?" in said
    assert "bad.yaml:7:3: spec.echoo" in said
    document = mloc.json("submit", "bad.yaml", code=2)
    assert document["ok"] is False
    assert "bad.yaml:6:22" in document["error"]
    assert "no such file" in mloc("submit", "mime.yaml", code=2)


def test_data_files_are_sent_along(mloc: Mloc, owner: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"q": "x"}\n')
    folder = tmp_path / "sub"
    folder.mkdir()
    data = "data: {type: dataset, url: ../rows.jsonl, column: q}"
    text = TEMPLATE.replace("data: {type: list, items: [one, two]}", data)
    (folder / "t.yaml").write_text(text)
    task_id = mloc.json("submit", "sub/t.yaml")["tasks"][0]["task_id"]
    document = mloc.ledger.document(task_id)
    assert document is not None
    stored = Path(document["spec"]["data"]["url"])  # type: ignore[index]
    assert stored.read_text() == '{"q": "x"}\n'


@pytest.mark.parametrize(("state", "code"), [(TaskState.DONE, 0), (TaskState.DEAD, 1)])
def test_waiting_says_how_it_ended(mloc: Mloc, owner: str, state: TaskState, code: int) -> None:
    def play() -> None:
        while not (mine := [each for each in mloc.ledger.waiting(50) if each.owner == owner]):
            left.wait(0.02)
        mloc.ends(mine[0], state, "boom" if code else "")

    left = threading.Event()
    player = threading.Thread(target=play)
    player.start()
    said = mloc("submit", "mine.yaml", "--wait", code=code)
    player.join()
    assert f"status    {state.value}" in said
    assert ("error     boom" in said) == bool(code)


def test_results_are_printed_and_saved(mloc: Mloc, owner: str, tmp_path: Path) -> None:
    task_id = submitted(mloc)
    assert "its results are not there yet" in mloc("result", task_id, code=2)
    (entry_,) = mloc.ledger.tasks([task_id]).values()
    mloc.ends(entry_, TaskState.DONE)
    assert [line.split() for line in mloc("result", task_id).splitlines()[2:]] == [
        ["0", "one"],
        ["1", "two"],
    ]
    assert mloc.json("result", task_id)["result"]["items"] == ROWS
    saved = Path(mloc("result", task_id, "-o", "out.jsonl").strip())
    assert [json.loads(line) for line in saved.read_text().splitlines()] == ROWS
    assert mloc("result", task_id, "--bundle").strip() == str(tmp_path / f"{task_id}.tar")
    log = mloc("result", task_id, "--file", "logs/shard-0000.log", "-o", "x.log").strip()
    assert "warming up" in Path(log).read_text()
    assert "logs/shard-0000.log" in mloc("result", task_id, "--files")
    assert "give one of" in mloc("result", task_id, "--files", "--bundle", code=2)
    assert "unknown format 'xml'" in mloc("result", task_id, "--format", "xml", "-o", "x", code=2)


def test_the_rows_of_a_task_that_failed_are_printed_row_by_row(mloc: Mloc, owner: str) -> None:
    task_id = submitted(mloc)
    mloc.ends(mloc.ledger.tasks([task_id])[task_id], TaskState.DEAD, "all attempts failed")
    lines = mloc("result", task_id).splitlines()
    assert [line.split() for line in lines[2:]] == [["0", "one"], ["1", "two"]]


def test_logs_are_read_and_followed(mloc: Mloc, owner: str) -> None:
    task_id = submitted(mloc)
    (entry_,) = mloc.ledger.tasks([task_id]).values()
    mloc.ends(entry_, TaskState.DONE)
    for options in ((), ("-f",)):
        assert "shard-0000  warming up" in mloc("logs", task_id, *options)
    line = json.loads(mloc("logs", task_id, "--json").splitlines()[-1])
    assert (line["source"], line["text"]) == ("shard-0000", "warming up")


def test_tasks_are_cancelled_and_retried(mloc: Mloc, owner: str) -> None:
    task_id = submitted(mloc)
    assert "is still at it" in mloc("retry", task_id, code=2)
    assert f"cancelled {task_id}" in mloc("cancel", task_id, "--wait")
    assert mloc("retry", task_id) == f"task {task_id}\n"
    assert mloc.ledger.tasks([task_id])[task_id].state is TaskState.PENDING
    assert f"cancelling {task_id}" in mloc("cancel", task_id)


def test_the_service_is_asked(mloc: Mloc, owner: str) -> None:
    assert mloc.json("workers") == []
    task_id = submitted(mloc)
    mloc.ends(mloc.ledger.tasks([task_id])[task_id], TaskState.DEAD, "all attempts failed")
    (letter,) = [each for each in mloc.json("dead-letters") if each["task_id"] == task_id]
    assert (letter["template"], letter["rows_missing"]) == ("mine", 1)
    assert f"{task_id}:\n" in mloc("dead-letters", "-v")
    report = mloc.json("cleanup", "--older-than-days", "1000")
    assert (report["dry_run"], report["count"]) == (True, 0)
    assert "nothing to remove" in mloc("cleanup", "--apply")


def test_ids_are_completed(mloc: Mloc, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task_id = submitted(mloc)
    assert (task_id, "mine PENDING") in complete_task_ids(task_id[:8])
    assert complete_task_ids("zz") == []
    monkeypatch.setenv("MLOC_API_URL", f"http://127.0.0.1:{free_port()}")
    settings.cache_clear()
    assert complete_task_ids(task_id[:8]) == []


def test_refusals_have_exit_codes(mloc: Mloc, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("show", "cancel", "retry", "logs", "result"):
        assert "there is no task" in mloc(command, str(uuid.uuid4()), code=2)
    monkeypatch.setenv("MLOC_API_TOKEN", "another")
    settings.cache_clear()
    assert "set MLOC_API_TOKEN" in mloc("list", code=1)


def test_leaving_a_wait_leaves_the_task(
    mloc: Mloc, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(client: Client, ids: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Client, "wait", leave)
    assert "goes on; `mloc cancel ID` stops one" in mloc("submit", "mine.yaml", "--wait", code=130)


def test_the_stack_is_asked_where_its_api_answers_else_a_command_serves_itself(
    mloc: Mloc, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = submitted(mloc)
    monkeypatch.delenv("MLOC_API_URL")
    settings.cache_clear()
    urls = []
    for place in (Address(mloc.url), None, Address(f"http://127.0.0.1:{free_port()}")):
        monkeypatch.setattr(mloc_dagster.client, "stack_api", lambda place=place: place)
        with open_api() as client:
            assert client.show(task_id).node == "mine"
            urls.append(client.url)
    assert urls == [mloc.url, "http://localhost", "http://localhost"]


def test_an_api_that_is_away_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLOC_API_URL", url)
    settings.cache_clear()
    monkeypatch.setattr(api_choice, "_ATTEMPTS", 1)
    assert entry.run(["list"]) == 1
    assert url in capsys.readouterr().err


def test_without_an_api_the_fleet_itself_is_asked(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLOC_API_URL", raising=False)
    monkeypatch.setenv("MLOC_REDIS_URL", redis_url)
    settings.cache_clear()
    with redis.Redis.from_url(redis_url) as client:
        assert client.ping()
    assert entry.run(["workers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert entry.run(["list", "--owner", "nobody"]) == 0
    assert "no task matches" in capsys.readouterr().err
