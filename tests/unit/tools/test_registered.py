"""Tools of distributions, and what is checked of tools before anything starts."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mloc_dagster.errors import InputError, MissingExtraError, MlocError, UnknownNameError
from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.schema import AgentTool
from mloc_dagster.tools import FailedCall, ToolFailure, calling, check_tools, open_toolsets
from tests.unit.executors.test_registry import plug_ins
from tests.unit.tools.calls import opened, result

__all__ = ["plug_ins"]

MODULE = '''
import asyncio, time
from mloc_dagster.tools import idempotency_key

def lookup(word: str, language: str = "en") -> dict:
    """Looks a word up.

    Args:
        word: The word to look up.
        language: Its language.
    """
    if word == "none":
        raise KeyError(word)
    return {"word": word, "language": language}

async def later(seconds: float) -> str:
    """Waits."""
    await asyncio.sleep(seconds)
    return "late"

def hang() -> str:
    """Hangs."""
    time.sleep(3600)

def untyped(word):
    """Has no types."""

def anything(*words: str) -> str:
    """Takes anything."""

def silent(word: str) -> str:
    return word

async def found(word: str, *, language: str, most: int = 5) -> str:
    """Finds a word.

    Args:
        word: The word.
        language: Its language.
        most: How many.
    """
    return f"{word} {language} {most}"

def key() -> str:
    """Returns the key."""
    return idempotency_key()

def told() -> str:
    """Can be asked."""

told.outcome = lambda key: {"outcome of": key}

def mute() -> str:
    """Cannot be asked."""

mute.outcome = "none"

value = 3
'''


@pytest.fixture
def tools(plug_ins: Path) -> Path:
    """A distribution with tools."""
    (plug_ins / "tools_of_a_test.py").write_text(MODULE)
    info = plug_ins / "mloc_tools-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mloc-tools\nVersion: 1.2\n")
    names = (
        "lookup",
        "later",
        "hang",
        "untyped",
        "anything",
        "silent",
        "value",
        "gone",
        "key",
        "told",
        "mute",
        "found",
    )
    lines = [f"my_tools.{name} = tools_of_a_test:{name}\n" for name in names]
    lines.append("my tool = tools_of_a_test:lookup\n")
    (info / "entry_points.txt").write_text("[mloc_dagster.tools]\n" + "".join(lines))
    return plug_ins


def item(name: str, **options: Any) -> dict[str, Any]:
    return {"entry_point": f"my_tools.{name}", **options}


def test_a_function_has_the_key_of_its_call(tools: Path) -> None:
    with calling("t/0/1/c"):
        assert result(item("key"), "key") == "t/0/1/c"
    assert result(item("key"), "key") == ""


def test_a_function_may_say_what_came_of_a_call(tools: Path) -> None:
    async def ask(name: str) -> str | None:
        tool = AgentTool.model_validate(item(name))
        async with open_toolsets([tool]) as (toolset,):
            return await toolset.outcome_of(name, "t/0/1/c")

    assert asyncio.run(ask("told")) == '{"outcome of":"t/0/1/c"}'
    with pytest.raises(ToolFailure, match="cannot be asked"):
        asyncio.run(ask("lookup"))
    with pytest.raises(MlocError, match="its `outcome` is no function"):
        asyncio.run(ask("mute"))


def test_a_function_of_a_distribution_is_a_tool(tools: Path) -> None:
    async def run() -> Any:
        async with opened(item("lookup")) as found:
            assert json.loads(await found.call("lookup", word="a")) == {
                "word": "a",
                "language": "en",
            }
            failed = await found.call("lookup", word="none")
            assert (failed, type(failed)) == ("Error: KeyError: 'none'", FailedCall)
            return found.definition("lookup")

    definition = asyncio.run(run())
    assert definition.description == "Looks a word up."
    assert definition.metadata == {"effect": "write"}
    properties = definition.parameters_json_schema["properties"]
    assert properties["word"]["description"] == "The word to look up."
    assert properties["language"]["default"] == "en"
    assert definition.parameters_json_schema["required"] == ["word"]


def test_functions_may_be_asynchronous_and_none_takes_longer_than_a_tool_may(tools: Path) -> None:
    assert result(item("later"), "later", seconds=0) == "late"
    short = {"tool_timeout": 0.2}
    warning = "took longer than 0.2 s: it may have been done or not"
    assert result(item("later"), "later", short, seconds=3600) == f"Error: later {warning}"
    assert result(item("hang", effect="read"), "hang", short) == (
        "Error: hang took longer than 0.2 s"
    )


def test_the_template_gives_what_the_model_does_not_see(tools: Path) -> None:
    async def run() -> Any:
        async with opened(item("found", options={"language": "de"})) as found:
            assert await found.call("found", word="a") == "a de 5"
            with pytest.raises(ValidationError, match="language"):
                await found.call("found", word="a", language="fr")
            return found.definition("found")

    definition = asyncio.run(run())
    assert definition.description == "Finds a word."
    assert list(definition.parameters_json_schema["properties"]) == ["word"]


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("found", {}, "the tool 'my_tools.found' needs the option 'language'"),
        ("found", {"language": "x", "mst": 1}, r"has no option 'mst'; did you mean 'most'\?"),
        ("found", {"language": "x", "most": "many"}, "its option 'most': Input should be a valid"),
        ("found", {"language": "x", "word": "a"}, "has no option 'word'"),
        ("lookup", {"language": "de"}, "has no option 'language': it takes none"),
    ],
)
def test_options_that_a_function_does_not_take(
    tools: Path, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(item(name, options=options))


def test_the_calculator_comes_with_mloc() -> None:
    calculator = {"entry_point": "calculator", "effect": "read"}
    assert result(calculator, "calculator", expression="(17 + 4) * 2") == "42"
    assert result(calculator, "calculator", expression="1/0") == (
        "Error: ValueError: '1/0' divides by zero"
    )


def check(*items: dict[str, Any], **options: bool) -> None:
    check_tools([AgentTool.model_validate(each) for each in items], **options)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("untyped", "the tool 'my_tools.untyped': its parameter 'word' has no type"),
        ("anything", r"\*words: str has no name that a model could give"),
        ("silent", "has no docstring, which tells the model what it does"),
        ("value", "the tool 'my_tools.value' from the distribution mloc-tools 1.2 .* no function"),
        ("gone", "comes from the distribution mloc-tools 1.2 .*, which cannot be loaded"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(tools: Path, name: str, said: str) -> None:
    with pytest.raises(MlocError, match=said):
        check(item(name))
    check(item(name), load=False)


def test_an_entry_point_that_nobody_registered_names_the_nearest(tools: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"'calculatr'; did you mean 'calculator'\?"):
        check({"entry_point": "calculatr"}, load=False)
    with pytest.raises(UnknownNameError, match=r"did you mean 'my_tools\.lookup'"):
        check(item("lockup"), load=False)


def test_a_name_that_no_model_can_call_needs_another(tools: Path) -> None:
    with pytest.raises(InputError, match=r"a model cannot call 'my tool'.*: give it a `name`"):
        check({"entry_point": "my tool"})
    check({"entry_point": "my tool", "name": "find"})


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    monkeypatch.setenv("JINA_API_KEY", " ")
    with pytest.raises(InputError, match="needs the environment variable SERPER_API_KEY where"):
        check({"search": {"provider": "serper"}})
    with pytest.raises(InputError, match="JINA_API_KEY where the worker starts; duckduckgo needs"):
        check({"search": {"provider": "jina"}})
    check({"search": {"provider": "duckduckgo"}})


def test_a_missing_program_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mcp-server-time"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="'mcp-servr-time' is not on this machine; did you mean"):
        check({"mcp": {"command": ["mcp-servr-time"]}})
    with pytest.raises(InputError, match="'/no/such' is not on this machine: there is no such"):
        check({"mcp": {"command": ["/no/such"]}})
    check({"mcp": {"command": ["mcp-server-time", "--utc"]}}, {"mcp": {"command": [str(program)]}})


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET_AT_ALL", raising=False)
    for server in (
        {"command": ["sh"], "env": {"A": "${NOT_SET_AT_ALL}"}},
        {"command": ["sh", "${NOT_SET_AT_ALL}"]},
        {"url": "https://example.org", "headers": {"A": "Bearer ${NOT_SET_AT_ALL}"}},
        {"url": "https://example.org/${NOT_SET_AT_ALL}"},
    ):
        with pytest.raises(InputError, match="the environment variable NOT_SET_AT_ALL is not set"):
            check({"mcp": server})
    monkeypatch.setenv("NOT_SET_AT_ALL", "x")
    with Reach("api").applied(), pytest.raises(OutOfReachError, match="MLOC_API_VARIABLES"):
        check({"mcp": {"url": "https://example.org", "headers": {"A": "${NOT_SET_AT_ALL}"}}})


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    gone = "pydantic_monty"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == gone else find(name, *more)
    )
    with pytest.raises(MissingExtraError, match="the tool python needs the extra 'agent'"):
        check({"python": {}})
    check({"http": {"allow": ["a.org"]}})
