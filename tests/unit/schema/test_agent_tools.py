"""The tools of an agent in a template: what each item means, and what is refused, where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from mloc_dagster.compile import compile_text
from mloc_dagster.schema.agent_tools import AgentTool, AgentTools
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.markers import Code, marked
from tests.tooled_task import ITEM_LINE, install, template
from tests.unit.executors.test_registry import plug_ins

__all__ = ["plug_ins"]


@pytest.mark.parametrize(
    ("item", "name", "effect"),
    [
        ({"python": {}}, "python", "read"),
        ({"python": None}, "python", "read"),
        ({"python": {}, "effect": "idempotent"}, "python", "idempotent"),
        ({"search": {"provider": "duckduckgo"}}, "search", "read"),
        ({"http": {"allow": ["a.example.org"]}}, "http", "read"),
        ({"http": {"allow": ["a.example.org"], "methods": ["GET", "HEAD"]}}, "http", "read"),
        ({"http": {"allow": ["a.example.org"], "methods": ["GET", "POST"]}}, "http", "write"),
        ({"entry_point": "my_tools.lookup"}, "lookup", "write"),
        ({"entry_point": "lookup", "name": "find", "effect": "read"}, "find", "read"),
        ({"mcp": {"command": ["server"]}}, None, "write"),
    ],
)
def test_a_tool_says_its_name_and_what_its_calls_change(
    item: dict[str, Any], name: str | None, effect: str
) -> None:
    tool = AgentTool.model_validate(item)
    assert (tool.tool_name, tool.call_effect) == (name, effect)


def test_a_sandbox_has_limits_in_the_units_of_templates() -> None:
    (tool,) = TypeAdapter(AgentTools).validate_python(
        [{"python": {"memory": "1GiB", "seconds": 2}}]
    )
    assert tool.python is not None
    assert (tool.python.memory, tool.python.seconds) == (1024**3, 2)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("{}", "a tool is one of python, mcp, search, rag, http, entry_point: none is given"),
        ("{python: {}, http: {allow: [a.org]}}", "python and http are given"),
        ("pyton: {}", "unknown key 'pyton'; did you mean 'python'?"),
        ("search: {provider: sepper}", "unknown value 'sepper'; did you mean 'serper'?"),
        ("mcp: {command: [a], url: 'https://a.org/mcp'}", "a command or a url: both are given"),
        ("mcp: {allow: [a]}", "a command or a url: neither is given"),
        ("mcp: {command: [a], headers: {X: y}}", "a command has env"),
        ("mcp: {url: 'https://a.org', env: {X: y}}", "a url has headers"),
        ("mcp: {url: a.org}", "expected an http:// or https:// URL"),
        ("http: {allow: ['https://a.org/x']}", "'https://a.org/x' is no host"),
        ("http: {allow: ['*']}", "'*' is no host"),
        ("http: {allow: []}", "name at least one"),
        ("http: {allow: [a.org], methods: [GETS]}", "unknown value 'GETS'; did you mean 'GET'?"),
        ("{entry_point: a, effect: reads}", "unknown value 'reads'; did you mean 'read'?"),
        ("python: {memory: lots}", "expected a quantity of memory"),
    ],
)
def test_what_is_no_tool_is_refused_where_it_stands(plug_ins: Path, item: str, said: str) -> None:
    install(plug_ins)
    _, (finding,) = compile_text(template(item), "t.yaml")
    assert (finding.line, said in finding.message) == (ITEM_LINE, True), finding


def test_two_tools_of_one_name_are_refused(plug_ins: Path) -> None:
    install(plug_ins)
    _, (finding,) = compile_text(template("python: {}", "{entry_point: x, name: python}"), "t.yaml")
    assert "two tools are called 'python': give one of them another name" in finding.message
    _, findings = compile_text(template("python: {}", "{python: {}, name: other}"), "t.yaml")
    assert findings == []


def test_a_command_is_marked_as_one() -> None:
    class Tools(Block):
        tools: AgentTools

    found = list(
        marked(Tools, {"tools": [{"mcp": {"command": ["a", "b c"]}}, {"entry_point": "x.y"}]})
    )
    assert [(each.value, each.marker) for each in found] == [
        ("a", Code("a 'b c'")),
        ("b c", Code("a 'b c'")),
        ("x.y", Code()),
    ]


def test_the_list_in_the_docs_is_one() -> None:
    text = (Path(__file__).parents[3] / "docs" / "tools.md").read_text()
    shown = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    tools = TypeAdapter(AgentTools).validate_python(shown["tools"])
    assert [each.kind for each in tools] == [
        *("python", "search", "http", "mcp", "mcp", "entry_point", "entry_point"),
    ]
