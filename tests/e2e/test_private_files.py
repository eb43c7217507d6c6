"""What mloc writes is its owner's alone, and what is secret in it shows nowhere else."""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import psycopg2.errors
import pytest
import redis
from psycopg2 import sql
from redis.exceptions import NoPermissionError

from tests.api_server import ECHO
from tests.e2e.stack import Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FROM_ENVIRONMENT, AS_TEXT = "planted-variable", "planted-text"
IN_ADDRESSES = ("planted-user", "planted-signature")
_ADDRESS = "https://bob:planted-user@nohost.invalid/{}?X-Amz-Signature=planted-signature"


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack in a home with a short path, as sockets want, where somebody has written before."""
    environment = {
        "PLANTED": FROM_ENVIRONMENT,
        "MLOC_API_VARIABLES": "PLANTED",
        "MLOC_API_PRIVATE_ADDRESSES": "1",
    }
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        Path(folder, "logs").mkdir(mode=0o755)
        home = Path(folder)
        with Stack(home, workers=1, run_workers=1, api=True, environment=environment) as running:
            yield running


def _open_to_others(folder: Path) -> list[str]:
    """Returns what others than its owner could read, write or enter, if they could come there."""
    found = []
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            # PostgreSQL lets everybody write to its socket, in a folder that only it may enter.
            if path.is_symlink() or (path.parent.name == "postgres" and path.is_socket()):
                continue
            if stat.S_IMODE(path.lstat().st_mode) & 0o077:
                found.append(f"{path.relative_to(folder)} {stat.filemode(path.lstat().st_mode)}")
    return found


@contextmanager
def _receiver() -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    """A destination that takes everything; yields its address, and the headers that came."""
    came: list[Mapping[str, str]] = []

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            came.append(dict(self.headers))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Takes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _with(destination: str) -> str:
    headers = f'{{Authorization: "Bearer {AS_TEXT}", X-Key: "${{PLANTED}}"}}'
    output = f"output: {{destination: {{type: http, url: '{destination}', headers: {headers}}}}}"
    return f"{ECHO}  retries: {{max: 0}}\n  {output}\n"


def _run(client: httpx.Client, text: str) -> Mapping[str, Any]:
    """Submits a template that brings a file; returns its task once it has ended."""
    upload = {"template": ("t.yaml", text), "file": ("rows.txt", "one\n")}
    answer = client.post("/api/v1/tasks", files=upload)
    assert answer.status_code == 202, answer.text
    place = f"/api/v1/tasks/{answer.json()['tasks'][0]['task_id']}"
    ended = ("DONE", "DEAD", "FAILED")
    until(lambda: client.get(place).json()["status"] in ended, "the task has ended", 300)
    return client.get(place).json()


def _answers(client: httpx.Client, ids: list[str]) -> str:
    paths = ["", "/api/v1/tasks", "/api/v1/dead_letters", "/workers", "/metrics"]
    for each in ids:
        paths += [f"/api/v1/tasks/{each}{part}" for part in ("", "/logs", "/progress")]
    return "\n".join(client.get(path).text for path in paths)


def _commands(stack: Stack, ids: list[str]) -> str:
    calls = [["list", "--json"], ["dead-letters"], ["dead-letters", "--json"], ["status", "--json"]]
    calls += [[command, each] for each in ids for command in ("show", "logs")]
    done: list[subprocess.CompletedProcess[str]] = [stack.mloc(*call) for call in calls]
    return "\n".join(each.stdout + each.stderr for each in done)


def _database(url: str) -> str:
    columns = (
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'public'"
    )
    found: list[str] = []
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(columns)
        for table, column in cursor.fetchall():
            names = sql.Identifier(column), sql.Identifier(table)
            cursor.execute(sql.SQL("SELECT {}::text FROM {}").format(*names))
            found += [f"{table}.{column}: {row[0]}" for row in cursor.fetchall()]
    return "\n".join(found)


def _redis(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        return "\n".join(
            repr(client.xrange(key) if client.type(key) == b"stream" else client.dump(key))
            for key in client.scan_iter()
        )


def _files(folder: Path) -> dict[str, str]:
    paths = [each for each in folder.rglob("*") if each.is_file() and "postgres" not in each.parts]
    return {str(each.relative_to(folder)): each.read_text("utf-8", "replace") for each in paths}


def test_secrets_show_nowhere_after_success_failure_and_death(stack: Stack) -> None:
    url = f"http://127.0.0.1:{stack.api_port}"
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        with _receiver() as (address, came):
            success = _run(client, _with(address))
        hopeless = _with(_ADDRESS.format("hook"))
        lost = ECHO.replace("{type: list, items: [one, two]}", "{type: dataset, url: '%s'}")
        unread = f"{lost % _ADDRESS.format('rows.jsonl')}  retries: {{max: 0}}\n"
        failures = [_run(client, text) for text in (hopeless, unread)]
        tasks = [success, *failures]
        assert [each["status"] for each in tasks] == ["DONE", "DEAD", "DEAD"]
        assert {each["Authorization"] for each in came} == {f"Bearer {AS_TEXT}"}
        assert {each["X-Key"] for each in came} == {FROM_ENVIRONMENT}
        ids = [each["task_id"] for each in tasks]
        shown = {"the API": _answers(client, ids), "commands": _commands(stack, ids)}
    shown |= {"PostgreSQL": _database(stack.postgres_url), "Redis": _redis(stack.redis_url)}
    assert all("nohost.invalid" in shown[where] for where in ("the API", "PostgreSQL"))
    # Literal secrets lie in one place, for their owner alone: steps run with them.
    files = _files(stack.layout.home)
    kept = {name: text for name, text in files.items() if not name.startswith("results/.secrets/")}
    assert len(files) > len(kept)
    assert {name.split("/")[0] for name in kept} >= {"logs", "results"}
    assert any(name.startswith("results/.submitted/") for name in kept)
    for where, text in {**shown, **kept}.items():
        for secret in (FROM_ENVIRONMENT, AS_TEXT, *IN_ADDRESSES):
            place = text.find(secret)
            assert place < 0, f"{where} shows {text[max(0, place - 200) : place + 40]}"


def test_workers_may_do_what_workers_do_and_no_more(stack: Stack) -> None:
    stack.mloc("submit", "echo", "--wait")
    workers = [psutil.Process(stack.pid(name)).environ() for name in ("worker-1", "runs-1")]
    (address,) = {each["MLOC_REDIS_URL"] for each in workers}
    (database,) = {each["MLOC_POSTGRES_URL"] for each in workers}
    own = stack.layout.password.read_text()
    assert not [each for each in workers if own in str(each)]
    with redis.Redis.from_url(stack.redis_url, decode_responses=True) as owner:
        # What Redis has refused them; the client library greets with a command of newer servers.
        refused = [each for each in owner.acl_log() if each["object"] != "client"]
        assert refused == []
    with redis.Redis.from_url(address) as worker:
        for command in (
            "FLUSHALL",
            "CONFIG GET *",
            "KEYS *",
            "ACL LIST",
            "SHUTDOWN",
            "GET else",
            "PUBLISH else x",
        ):
            with pytest.raises(NoPermissionError):
                worker.execute_command(*command.split())
    with closing(psycopg2.connect(database)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            assert cursor.fetchall() == [(False,)]
            for statement in (
                *("CREATE TABLE mine (a int)", "DROP TABLE runs", "TRUNCATE runs"),
                *("SELECT * FROM mloc.documents", "COPY runs TO PROGRAM 'true'"),
            ):
                with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute(statement)


def test_state_and_results_are_their_owners_alone(stack: Stack) -> None:
    done = stack.mloc("run", "echo", "--quiet")
    assert done.returncode == 0, done.stderr
    home = stack.layout.home
    assert stat.S_IMODE(home.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
    assert _open_to_others(home) == []
    assert (stack.layout.redis / "appendonly.aof").exists()
    assert list((home / "results").glob("*/responses.json"))
