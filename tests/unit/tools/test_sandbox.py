"""The tool `python`: what code may do, and what stops it."""

from __future__ import annotations

import asyncio

import pytest

from mloc_dagster.tools import FailedCall
from tests.unit.tools.calls import opened, result, results

SMALL = {"python": {"memory": "64MiB", "seconds": 2}}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 + 1", "2"),
        ("print('a')\nx = 3\nx * 2", "a\n6"),
        ("print('a'); 'b'", "a\n'b'"),
        ("x = 'ü'; x", "'ü'"),
        ("for i in range(3):\n    print(i)", "0\n1\n2"),
        ("import math\nround(math.pi, 3)", "3.142"),
        ("import json\r\njson.dumps({'a': [1]})", "'{\"a\": [1]}'"),
        ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nf(20)", "2432902008176640000"),
        ("sum(\n  range(10)\n)", "45"),
        ("x = 1", "(no output: print something, or end with a value)"),
        ("None", "(no output: print something, or end with a value)"),
        ("import time\ntime.sleep(3600)\n'awake'", "'awake'"),
    ],
)
def test_code_gives_what_it_prints_and_its_last_value(code: str, said: str) -> None:
    assert result(SMALL, "python", code=code) == said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1/0", "ZeroDivisionError: division by zero (line 1)"),
        ("x = 1\n\nx.y", "(line 3)"),
        ("print('so far')\n1/0", "so far\nZeroDivisionError"),
        ("def", "SyntaxError"),
        ("import os\nos.listdir('/')", "PermissionError"),
        ("import os\nos.environ", "RuntimeError"),
        ("import os\nos.system('id')", "AttributeError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("open('/tmp/x', 'w').write('a')", "PermissionError"),
        ("from pathlib import Path\nPath('/etc/passwd').read_text()", "PermissionError"),
        ("import socket\nsocket.socket()", "ModuleNotFoundError"),
        ("import urllib.request", "ModuleNotFoundError"),
        ("import subprocess", "ModuleNotFoundError"),
        ("import ctypes", "ModuleNotFoundError"),
        ("__import__('os').system('id')", "NameError"),
        ("().__class__.__bases__[0].__subclasses__()", "AttributeError"),
        ("def f(n):\n    return f(n + 1)\nf(0)", "RecursionError"),
        ("while True:\n    pass", "the code ran longer than 2 s"),
        ("a = [0]\nwhile True:\n    a = a + a", "took more than 64 MiB"),
        ("'a' * 10**10", "took more than 64 MiB"),
        ("2 ** 10**9", "took more than 64 MiB"),
        ("while True:\n    print('x' * 1000)", "it printed more than 64 KiB"),
        ("class A:\n    def __repr__(self):\n        while True: pass\nA()", "longer than 2 s"),
    ],
)
def test_what_code_may_not_do_is_told_to_the_model(code: str, said: str) -> None:
    found = result(SMALL, "python", code=code)
    assert isinstance(found, FailedCall)
    assert found.startswith("Error: ")
    assert said in found
    assert "Traceback" not in found


def test_large_values_are_cut_where_they_are() -> None:
    found = result(SMALL, "python", code="list(range(1_000_000))")
    assert found.startswith("[0, 1, 2")
    assert found.endswith("…")
    assert len(found) < 20_000


def test_calls_know_nothing_of_one_another() -> None:
    first, second = results(SMALL, ("python", {"code": "x = 1"}), ("python", {"code": "x"}))
    assert first.startswith("(no output")
    assert "NameError: name 'x' is not defined" in second


def test_calls_that_wait_for_a_process_do_not_lose_their_time() -> None:
    async def run() -> list[str]:
        async with opened(SMALL, tool_timeout=1.0) as tools:
            loops = [tools.call("python", code="while True: pass") for _ in range(20)]
            *_, last = await asyncio.gather(*loops, tools.call("python", code="'done'"))
            return [last, *_]

    last, *others = asyncio.run(run())
    assert last == "'done'"
    assert set(others) == {"Error: TimeoutError: the code ran longer than 1 s"}


def test_a_tool_says_what_its_calls_change() -> None:
    async def run() -> tuple[object, object]:
        async with opened(SMALL, {**SMALL, "name": "other", "effect": "idempotent"}) as tools:
            assert tools.names == ["python", "other"]
            return tools.definition("python").metadata, tools.definition("other").metadata

    assert asyncio.run(run()) == ({"effect": "read"}, {"effect": "idempotent"})
