"""Tools as plain functions, as TRL's trainers take them."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from mloc_dagster.errors import InputError
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools import FailedCall, tool_functions

SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]


def tools(*items: dict[str, Any]) -> list[AgentTool]:
    return [AgentTool.model_validate(each) for each in items]


def test_tools_are_functions_with_a_signature() -> None:
    post = {"http": {"allow": ["127.0.0.1:1"], "methods": ["GET", "POST"]}}
    with tool_functions(tools({"entry_point": "calculator"}, {"python": {}}, post)) as functions:
        assert [each.__name__ for each in functions] == ["calculator", "python", "http"]
        calculator, python, http = functions
        assert calculator(expression="6 * 7") == "42"
        assert calculator("6 * 7") == "42"
        assert python(code="1 + 1") == "2"
        assert str(inspect.signature(calculator)) == "(expression: str) -> str"
        assert not inspect.iscoroutinefunction(calculator)
        parameters = inspect.signature(http).parameters
        assert (parameters["body"].annotation, parameters["body"].default) == (Optional[str], None)  # noqa: UP045
        assert parameters["method"].default == "GET"
        for failed in (calculator(expression="1/0"), http(url="http://127.0.0.1:1/"), python()):
            assert isinstance(failed, FailedCall)


def test_a_server_s_tools_are_functions_too() -> None:
    item = {"mcp": {"command": SERVER, "allow": ["add"]}, "name": "maths"}
    with tool_functions(tools(item), tool_timeout=20) as (add,):
        assert add.__name__ == "maths_add"
        assert add(a=1, b=2) == "3"
        assert str(inspect.signature(add)) == "(a: int, b: int) -> str"


def test_what_keeps_tools_from_opening_is_raised() -> None:
    item = {"mcp": {"command": ["/no/such"]}}
    with pytest.raises(InputError, match="is not on this machine"), tool_functions(tools(item)):
        pass


def test_transformers_and_trl_read_them() -> None:
    utils = pytest.importorskip("transformers.utils")
    post = {"http": {"allow": ["a.org"], "methods": ["GET", "POST"]}}
    with tool_functions(tools({"entry_point": "calculator"}, post)) as functions:
        calculator, http = (utils.get_json_schema(each)["function"] for each in functions)
    assert calculator["name"] == "calculator"
    assert calculator["description"].startswith("Computes an arithmetic expression exactly.")
    (expression,) = calculator["parameters"]["properties"].values()
    assert expression["type"] == "string"
    assert expression["description"].startswith("Numbers with + - *")
    assert http["parameters"]["required"] == ["url"]
    assert http["parameters"]["properties"]["body"]["nullable"] is True
