"""`mloc up` for real: Redis, PostgreSQL and Dagster under a supervisor, killed and cleaned up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import psycopg2
import pytest
import redis

from tests.e2e.stack import ROOT, Stack, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """One stack without workers; every test leaves it running."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as home, Stack(Path(home)) as running:
        yield running


@pytest.fixture
def idle(tmp_path: Path) -> Stack:
    """A stack that nobody has started."""
    return Stack(tmp_path / "home")


def _rows(url: str, query: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []


def test_status_shows_what_runs_and_where(stack: Stack) -> None:
    assert httpx.get(stack.webserver_url, follow_redirects=True, trust_env=False).status_code == 200
    told = stack.status()
    names = [each["name"] for each in told["components"]]
    assert names == ["redis", "postgres", "code", "webserver", "daemon"]
    assert {each["state"] for each in told["components"]} == {"RUNNING"}
    assert all(psutil.pid_exists(each["pid"]) for each in told["components"])
    assert all(Path(each["log"]).is_file() for each in told["components"])
    assert told["workers"] == []
    shown = stack.mloc("status").stdout
    assert stack.webserver_url in shown
    assert "redis://:***@127.0.0.1" in shown


def test_the_password_is_needed_and_shows_nowhere(stack: Stack) -> None:
    password = stack.layout.password.read_text()
    assert stack.layout.password.stat().st_mode & 0o077 == 0
    bare = stack.redis_url.replace(password, "")
    nobody = redis.Redis.from_url(bare.replace(":@", ""), retry=None)
    with nobody, pytest.raises(redis.AuthenticationError):
        nobody.ping()
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(stack.postgres_url.replace(password, "guessed"))
    assert not [each for each in stack.processes() if password in " ".join(each.cmdline())]
    assert not [log for log in stack.layout.logs.iterdir() if password in log.read_text()]
    said = stack.mloc("status").stdout + stack.mloc("status", "--json").stdout
    assert password not in said


def test_a_killed_redis_is_back_with_its_data(stack: Stack) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        client.set("kept", "yes")
        before = stack.kill("redis")
        stack.wait_running("redis", not_pid=before)
        assert client.get("kept") == b"yes"
    assert stack.component("redis").restarts >= 1


def test_a_killed_postgres_is_back_with_its_data(stack: Stack) -> None:
    _rows(stack.postgres_url, "CREATE TABLE kept AS SELECT 42 AS answer")
    before = stack.kill("postgres")
    stack.wait_running("postgres", not_pid=before)
    assert _rows(stack.postgres_url, "SELECT answer FROM kept") == [(42,)]
    stack.wait_running("webserver")


@pytest.mark.parametrize("name", ["code", "webserver", "daemon"])
def test_a_killed_part_of_dagster_is_back(stack: Stack, name: str) -> None:
    before = stack.kill(name)
    stack.wait_running(name, not_pid=before)


def test_mloc_run_shares_the_database_and_leaves_it_up(stack: Stack) -> None:
    server = stack.pid("postgres")
    known = _rows(stack.postgres_url, "SELECT count(*) FROM runs")
    done = stack.mloc("run", "echo", "--quiet")
    assert done.returncode == 0, done.stderr
    assert _rows(stack.postgres_url, "SELECT count(*) FROM runs") != known
    assert stack.pid("postgres") == server
    assert not list(stack.layout.home.glob("postgres.users/*"))


def test_a_second_up_says_where_the_first_is(stack: Stack) -> None:
    done = stack.mloc(*stack.up_arguments())
    assert done.returncode == 2
    assert "already up" in done.stderr
    assert stack.webserver_url in done.stderr


def test_up_cleans_up_after_a_dead_supervisor(stack: Stack) -> None:
    with redis.Redis.from_url(stack.redis_url) as client:
        client.set("outlives", "it")
    url, left = stack.redis_url, {each.pid for each in stack.processes()}
    left -= {stack.kill("supervisor")}
    until(lambda: stack.mloc("status").returncode == 1, "the supervisor is known to be dead")
    told = stack.mloc("status", "--json").stdout
    assert '"up": false' in told
    done = stack.start()
    assert "lost its supervisor" in done.stderr
    assert "redis-server" in done.stderr
    assert "stale pid file" in done.stderr
    assert not left & {each.pid for each in stack.processes()}
    assert stack.redis_url == url
    with redis.Redis.from_url(stack.redis_url) as client:
        assert client.get("outlives") == b"it"


def test_up_after_everything_was_killed(stack: Stack) -> None:
    _rows(stack.postgres_url, "CREATE TABLE durable AS SELECT 7 AS answer")
    stack.kill_all()
    stack.start()
    assert _rows(stack.postgres_url, "SELECT answer FROM durable") == [(7,)]


def test_down_stops_a_half_dead_stack_and_of_two_ups_at_once_one_starts_it(stack: Stack) -> None:
    stack.kill("supervisor")
    done = stack.mloc("down")
    assert done.returncode == 0
    assert done.stdout.count("\n") == 1
    assert "none is left" in done.stdout
    assert stack.processes() == []

    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: stack.mloc(*stack.up_arguments(), "--detach"), range(2)))
    started, refused = sorted(both, key=lambda each: each.returncode)
    assert (started.returncode, refused.returncode) == (0, 2), (started.stderr, refused.stderr)
    assert "another command is starting or stopping" in refused.stderr
    assert {each.state for each in stack.components().values()} == {"RUNNING"}


def test_a_database_whose_making_was_killed_is_made_anew() -> None:
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        home = Path(folder)
        idle = Stack(home)
        command = [sys.executable, "-m", "mloc_dagster.cli", "run", "echo", "--quiet"]
        first = subprocess.Popen(command, env=idle.environment, start_new_session=True)
        until((home / "postgres" / "PG_VERSION").exists, "initdb has begun")
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        again = idle.mloc(*command[3:])
    assert again.returncode == 0, again.stderr


def test_down_and_status_without_a_stack(idle: Stack) -> None:
    done = idle.mloc("down")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing is up" in done.stdout
    told = idle.mloc("status")
    assert told.returncode == 1
    assert "nothing is up" in told.stdout


def test_a_taken_port_is_one_message(idle: Stack) -> None:
    with socket.create_server(("127.0.0.1", idle.port)):
        done = idle.mloc(*idle.up_arguments())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"port {idle.port} is taken by " in done.stderr
    assert f"(pid {os.getpid()})" in done.stderr
    assert "--port" in done.stderr
    assert "MLOC_WEBSERVER_PORT" in done.stderr
    assert idle.processes() == []


def test_a_database_in_use_is_not_taken_away(idle: Stack) -> None:
    code = "from mloc_dagster.home import postgres_url as u; print(u()); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=idle.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as user:
        assert user.stdout is not None
        assert user.stdout.readline().startswith("postgresql")
        done = idle.mloc(*idle.up_arguments())
        user.communicate("\n", timeout=60)
    assert done.returncode == 2
    assert "in use by" in done.stderr
    assert f"({user.pid})" in done.stderr
    assert idle.processes() == []


def test_in_the_foreground_it_tells_of_deaths_and_stops_at_ctrl_c(idle: Stack) -> None:
    said = idle.layout.home.parent / "said"
    with said.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mloc_dagster.cli", *idle.up_arguments()],
            cwd=ROOT,
            env=idle.environment,
            stdout=output,
            stderr=output,
        )
        try:
            until(lambda: "Ctrl-C" in said.read_text(), "it is up", timeout_s=240)
            lines = said.read_text().splitlines()
            assert lines[0] == f"starting {', '.join(idle.plan.components())}"
            ready = {
                line.split(" is ready after ")[0] for line in lines if " is ready after " in line
            }
            assert ready == set(idle.plan.components())
            before = idle.kill("redis")
            until(lambda: f"redis ({before}) died" in said.read_text(), "its death is told")
            until(lambda: "redis runs (" in said.read_text(), "its return is told")
            process.send_signal(signal.SIGINT)
            code = process.wait(timeout=300)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            idle.mloc("down")
    assert code == 0
    assert said.read_text().endswith("stopped\n")
    assert idle.processes() == []
