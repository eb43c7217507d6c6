"""What can be known of tools before anything starts."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from mloc_dagster.errors import InputError, MissingExtraError, nearest_hint
from mloc_dagster.net import current_reach
from mloc_dagster.schema import AgentTool, McpTool, SearchTool, ToolOrWorker
from mloc_dagster.tools.registered import check_registered

SEARCH_KEYS: Mapping[str, str] = {"serper": "SERPER_API_KEY", "jina": "JINA_API_KEY"}
"""Variables that hold the keys of search providers which ask for one."""

_VARIABLE = re.compile(r"\$\{[^}]+\}")
_EXTRA = "agent"
_PACKAGES = {
    "python": ("pydantic_ai", "pydantic_monty"),
    "mcp": ("pydantic_ai", "fastmcp", "httpx2"),
    "search": ("pydantic_ai", "httpx2", "ddgs"),
    "rag": ("pydantic_ai",),
    "http": ("pydantic_ai", "httpx2"),
    "entry_point": ("pydantic_ai",),
    "agent": ("pydantic_ai",),
}


def check_tools(tools: Sequence[AgentTool], *, load: bool = True) -> None:
    """Checks what would keep tools from working on this machine.

    Args:
        tools: The tools of a task.
        load: Whether functions of entry points are imported, to see if they can be tools.

    Raises:
        MissingExtraError: If a package is not installed.
        UnknownNameError: If nobody registered an entry point; names the nearest.
        InputError: If a variable of the environment or a program is missing, or the task may not
            have it; if options are not those of a function.
        TerminalError: If a function of an entry point cannot be imported, or is no tool.
    """
    for tool in tools:
        _check_packages(tool)
        if isinstance(tool, ToolOrWorker) and tool.agent is not None:
            check_tools(tool.agent.tools, load=load)
        if tool.mcp is not None:
            _check_mcp(tool.mcp)
        elif tool.search is not None:
            _check_search(tool.search)
        elif tool.entry_point is not None:
            check_registered(tool, load=load)


def search_key(provider: str) -> str:
    """Returns the key for a search provider; empty if it asks for none.

    Raises:
        InputError: If its variable is not set.
    """
    variable = SEARCH_KEYS.get(provider)
    key = os.environ.get(variable, "").strip() if variable else ""
    if variable and not key:
        free = [name for name in ("serper", "jina", "duckduckgo") if name not in SEARCH_KEYS]
        raise InputError(
            f"the tool search with {provider} needs the environment variable {variable} where "
            f"the worker starts; {' and '.join(free)} needs no key"
        )
    return key


def filled(secrets: Mapping[str, SecretStr]) -> dict[str, str]:
    """Returns headers or variables with those of the environment filled in.

    Raises:
        InputError: If one is not set, or the task may not have it.
    """
    reach = current_reach()
    return {name: reach.filled_in(each.get_secret_value()) for name, each in secrets.items()}


def filled_words(words: Iterable[str]) -> list[str]:
    """Returns the words of a command with the variables of the environment filled in.

    Raises:
        InputError: If one is not set, or the task may not have it.
    """
    return [current_reach().filled_in(each) for each in words]


def mcp_secrets(server: McpTool) -> frozenset[str]:
    """Returns what no result and no log of a server may hold: headers, variables, filled-in words.

    Raises:
        InputError: As `filled`.
    """
    values = {*filled(server.headers).values(), *filled(server.env).values()}
    words = " ".join(server.command or ())
    values.update(filled_words(each[0] for each in _VARIABLE.finditer(words)))
    return frozenset(values | {each.rpartition(" ")[2] for each in values})


def _check_packages(tool: AgentTool) -> None:
    needed = _PACKAGES[tool.kind]
    if tool.search is not None and tool.search.provider != "duckduckgo":
        needed = needed[:-1]
    if any(importlib.util.find_spec(each) is None for each in needed):
        raise MissingExtraError(f"the tool {tool.kind}", _EXTRA)


def _check_search(search: SearchTool) -> None:
    search_key(search.provider)


def _check_mcp(server: McpTool) -> None:
    filled(server.headers)
    variables = filled(server.env)
    if server.url is not None:
        current_reach().filled_in(server.url)
    if server.command is None:
        return
    program = filled_words(server.command)[0]
    path = variables.get("PATH", os.environ.get("PATH", ""))
    if shutil.which(program, path=path) is None:
        raise InputError(
            f"the MCP server's command {program!r} is not on this machine"
            f"{_nearest_program(program, path)}"
        )


def _nearest_program(name: str, path: str) -> str:
    """Returns a guess at what was meant, if there is a near one on the path."""
    if "/" in name:
        return ": there is no such program"
    programs: set[str] = set()
    for folder in filter(None, path.split(os.pathsep)):
        try:
            programs.update(each.name for each in Path(folder).iterdir())
        except OSError:
            continue  # a path may name folders that are not there
    hint = nearest_hint(name, programs)
    return hint if hint.endswith("?") else ": there is no such program on the PATH"
