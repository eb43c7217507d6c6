"""The tools of real MCP servers, over stdio and streamable HTTP, also when these die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tenacity import retry, stop_after_delay, wait_fixed

from mloc_dagster.errors import InputError, TerminalError, TransientError
from mloc_dagster.net import Reach
from mloc_dagster.tools import FailedCall, calling
from mloc_dagster.tools.mcp_servers import MOST_STARTS
from tests.ports import free_port
from tests.unit.tools.calls import opened, result

SERVER = str(Path(__file__).with_name("mcp_server.py"))
COMMAND = [sys.executable, SERVER]
NAME = Path(sys.executable).name


def program(**options: Any) -> dict[str, Any]:
    return {"mcp": {"command": COMMAND, **options}}


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@retry(stop=stop_after_delay(30), wait=wait_fixed(0.05), reraise=True)
def expect_gone(pid: int) -> None:
    assert not lives(pid)


def test_a_server_over_stdio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_SECRET", "value-of-a-secret")
    monkeypatch.setenv("NOT_GIVEN", "x")
    lines: list[str] = []

    async def run() -> int:
        item = program(env={"GIVEN": "${SOMETHING_SECRET}"})
        async with opened(item, tool_timeout=20, log=lines.append) as tools:
            assert tools.definition("add").metadata["effect"] == "write"
            assert tools.definition("add").description == "Adds two numbers."
            assert await tools.call("add", a=1, b=2) == "3"
            # It has what it was given, which no result shows, and nothing else of ours.
            assert await tools.call("variable", name="GIVEN") == "***"
            assert await tools.call("variable", name="NOT_GIVEN") == "none"
            failed = await tools.call("add", a="x", b=2)
            assert isinstance(failed, FailedCall)
            assert "valid integer" in failed
            assert await tools.call("say", line="it said value-of-a-secret") == "said"
            return int(await tools.call("pid"))

    assert not lives(asyncio.run(run()))
    assert f"mcp {NAME}: it said ***" in lines


def test_what_a_server_says_does_not_go_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert result(program(), "say", {"tool_timeout": 20}, line="for the log") == "said"
    assert "for the log" not in "".join(capfd.readouterr())


def test_tools_are_chosen_by_name_and_may_get_a_prefix() -> None:
    async def run() -> list[str]:
        item = {**program(allow=["add", "pid"]), "name": "maths", "effect": "read"}
        async with opened(item) as tools:
            assert await tools.call("maths_add", a=1, b=2) == "3"
            assert tools.definition("maths_add").metadata == {"effect": "read"}
            return tools.names

    assert asyncio.run(run()) == ["maths_add", "maths_pid"]


def test_a_tool_that_the_server_lacks_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"has no tool 'ad'; did you mean 'add'\?"):
        result(program(allow=["ad"]), "add")


def test_a_program_that_is_no_server_is_an_error_before_any_row(
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines: list[str] = []
    item = {"mcp": {"command": [sys.executable, "-c", "print('hello')"]}}
    said = f"the MCP server {NAME!r} does not start: it ended at once, without a word"
    with pytest.raises(TerminalError, match=said):
        result(item, "add", {"log": lines.append})
    assert lines == ["mcp: Failed to parse JSONRPC message from server"] * 2
    assert capfd.readouterr().err == ""


def ends(code: str) -> dict[str, Any]:
    command = [sys.executable, "-c", f"import os, sys\n{code}", "--key=${KEY_OF_A_TEST}"]
    return program(command=command, env={"KEY": "value-of-a-secret"})


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("sys.exit('the key ' + os.environ['KEY'] + ' is wrong')", r"the key \*\*\* is wrong"),
        ("sys.exit(f'{os.getpid()} INFO one\\ntwo\\n  at x')", r"\d+ INFO one; two"),
        ("sys.stderr.write('no end of line')", "no end of line"),
        ("sys.exit('unknown argument ' + sys.argv[1])", r"unknown argument --key=\*\*\*"),
    ],
)
def test_a_program_that_ends_at_once_is_started_twice_and_its_last_words_told(
    monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    monkeypatch.setenv("KEY_OF_A_TEST", "another-secret")
    again = "; a second start ended the same way$"
    with pytest.raises(TerminalError, match=f"does not start: it ended at once: {said}{again}"):
        result(ends(code), "add")


def test_a_program_that_ends_differently_each_time_may_be_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KEY_OF_A_TEST", "another-secret")
    with pytest.raises(TransientError, match=r"does not start: it ended at once: [a-z]+$"):
        result(ends("sys.exit(''.join(chr(97 + each % 26) for each in os.urandom(20)))"), "add")


def test_a_program_that_starts_the_second_time_has_started(tmp_path: Path) -> None:
    code = f"""
import os, sys
try:
    os.mkdir({str(tmp_path / "seen")!r})
except FileExistsError:
    os.execv(sys.executable, [sys.executable, {SERVER!r}])
sys.exit("not yet")
"""
    assert result(program(command=[sys.executable, "-c", code]), "add", a=1, b=2) == "3"


def test_tools_of_two_servers_must_differ() -> None:
    async def run() -> None:
        async with opened(program(allow=["add"]), program(allow=["add"])):
            pass

    with pytest.raises(InputError, match="two tools are called 'add': give one of them a `name`"):
        asyncio.run(run())


def test_a_call_that_hangs_is_cut_off_and_the_next_one_answered() -> None:
    async def run() -> None:
        async with opened(program(), tool_timeout=20) as tools:
            assert await tools.call("add", a=1, b=2) == "3"
            async with asyncio.timeout(30):
                hanging = asyncio.create_task(tools.call("hang"))
                assert await tools.call("add", a=2, b=2) == "4"
                hanging.cancel()
                with suppress(asyncio.CancelledError):
                    await hanging
                assert await tools.call("add", a=3, b=2) == "5"

    asyncio.run(run())
    assert result(program(), "hang", {"tool_timeout": 0.3}) == (
        "Error: hang took longer than 0.3 s: it may have been done or not"
    )


@pytest.mark.parametrize(("effect", "answer"), [("read", "survived"), ("write", "Error: ")])
def test_what_reads_is_asked_again_of_a_server_that_died_in_the_call(
    tmp_path: Path, effect: str, answer: str
) -> None:
    item = {**program(), "effect": effect}
    said = result(item, "die_once", {"tool_timeout": 20}, mark=str(tmp_path / "mark"))
    assert said.startswith(answer)


def test_a_server_is_told_the_key_of_a_call() -> None:
    with calling("t/0/1/c"):
        assert result(program(), "key", {"tool_timeout": 20}) == "t/0/1/c"
    assert result(program(), "key", {"tool_timeout": 20}) == "None"


def test_a_server_that_dies_in_a_call_is_started_again_by_the_next() -> None:
    async def run() -> None:
        async with opened(program(), tool_timeout=20) as tools:
            first = int(await tools.call("pid"))
            died, *hung = await asyncio.gather(
                tools.call("die"), tools.call("hang"), tools.call("hang")
            )
            said = f"the MCP server {NAME!r} ended during the call: it may have been done or not"
            assert [died, *hung] == [f"Error: {said}"] * 3
            assert isinstance(died, FailedCall)
            # Several calls at once: it starts once.
            pids = await asyncio.gather(tools.call("pid"), tools.call("pid"))
            assert len(set(pids)) == 1
            assert int(pids[0]) != first
            # One that was killed between two calls may take the next one with it, if that was sent
            # before the end was seen.
            os.kill(int(pids[0]), signal.SIGKILL)
            answers = [await tools.call("add", a=1, b=2) for _ in range(2)]
            assert answers[0] in ("3", f"Error: {said}")
            assert answers[1] == "3"

    asyncio.run(run())


def test_a_server_that_always_dies_is_given_up() -> None:
    async def run() -> None:
        async with opened(program(), tool_timeout=20) as tools:
            said = [await tools.call("die") for _ in range(MOST_STARTS + 2)]
            assert said[-1] == (
                f"Error: the MCP server {NAME!r} does not start again: it has ended "
                f"{MOST_STARTS} times without an answer"
            )
            assert "ended during the call" in said[-3]
            assert tools.names[0] == "add"

    asyncio.run(run())


def test_a_server_ends_though_the_task_is_cancelled_and_it_ignores_signals() -> None:
    pids: list[int] = []

    async def run() -> None:
        async with opened(program(env={"MCP_TEST_STUBBORN": "1"}), tool_timeout=60) as tools:
            pids.append(int(await tools.call("pid")))
            await tools.call("hang")

    async def cancelled() -> None:
        task = asyncio.create_task(run())
        while not pids:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert not lives(pids[0])


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_ends_with_a_worker_that_is_killed(how: signal.Signals) -> None:
    code = f"""
import asyncio
from tests.unit.tools.calls import opened
async def run():
    item = {{"mcp": {{"command": {COMMAND!r}, "env": {{"MCP_TEST_STUBBORN": "1"}}}}}}
    async with opened(item, tool_timeout=60) as tools:
        print(await tools.call("pid"), flush=True)
        await tools.call("hang")
asyncio.run(run())
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root
    ) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        assert lives(pid)
        worker.send_signal(how)
    expect_gone(pid)


@pytest.fixture
def port() -> int:
    return free_port()


def start(port: int) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [*COMMAND, str(port)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert server.stderr is not None
    for line in server.stderr:
        if "Uvicorn running" in line:
            return server
    raise AssertionError("it did not start")


@pytest.fixture
def served(port: int) -> Iterator[list[subprocess.Popen[str]]]:
    servers = [start(port)]
    yield servers
    for each in servers:
        each.kill()
        each.communicate()


def test_a_server_over_http(port: int, served: list[subprocess.Popen[str]]) -> None:
    async def run() -> None:
        item = {
            "mcp": {
                "url": f"http://127.0.0.1:{port}/mcp",
                "headers": {"Authorization": "Bearer abcdefgh"},
                "allow": ["add", "die", "fail", "pid"],
            }
        }
        async with opened(item, tool_timeout=20) as tools:
            assert await tools.call("add", a=1, b=2) == "3"
            assert await tools.call("fail", why="no") == "Error: Error executing tool fail"
            said = await tools.call("die")
            assert said == (
                "Error: the MCP server '127.0.0.1' ended during the call: "
                "it may have been done or not"
            )
            gone = await tools.call("add", a=1, b=2)
            assert "the MCP server '127.0.0.1' does not start again: " in gone
            served.append(await asyncio.to_thread(start, port))
            assert await tools.call("add", a=2, b=2) == "4"

    asyncio.run(run())


def test_a_server_that_is_not_there_is_an_error_before_any_row(port: int) -> None:
    item = {"mcp": {"url": f"http://127.0.0.1:{port}/mcp"}}
    with pytest.raises(TransientError, match=r"the MCP server '127\.0\.0\.1' does not start: "):
        result(item, "add")


def test_a_task_of_the_api_reaches_no_private_server(
    port: int, served: list[subprocess.Popen[str]]
) -> None:
    item = {"mcp": {"url": f"http://127.0.0.1:{port}/mcp"}}
    with Reach("api").applied(), pytest.raises(TransientError, match="is a private address"):
        result(item, "add")
