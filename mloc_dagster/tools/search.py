"""The tool `search`: what search providers find, as compact text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import httpx2

from mloc_dagster.net import RefusedAddressError
from mloc_dagster.schema import SearchTool
from mloc_dagster.settings import settings
from mloc_dagster.tools.checks import search_key
from mloc_dagster.tools.failure import ToolFailure
from mloc_dagster.tools.threads import in_thread

_SNIPPET = 500
"""Characters of a result's text."""


@dataclass(frozen=True, slots=True)
class Found:
    """One result."""

    title: str
    url: str
    snippet: str


def search_function(
    tool: SearchTool, client: httpx2.AsyncClient, timeout_s: float
) -> Callable[[str], Awaitable[str]]:
    """Returns the tool.

    Args:
        tool: Who searches, and how many results are wanted.
        client: Sends the requests.
        timeout_s: Seconds that a search may take.

    Raises:
        InputError: If the provider's key is not set.
    """
    key = search_key(tool.provider)
    provider = {"serper": _serper, "jina": _jina, "duckduckgo": _duckduckgo}[tool.provider]

    async def search(query: str) -> str:
        """Searches the web and returns titles, addresses and snippets of what was found.

        Args:
            query: What to search for.
        """
        found = await provider(_Asked(query, tool.max_results, key, timeout_s), client)
        return _listed(found[: tool.max_results]) or "nothing was found"

    return search


@dataclass(frozen=True, slots=True)
class _Asked:
    query: str
    most: int
    key: str
    timeout_s: float


async def _serper(asked: _Asked, client: httpx2.AsyncClient) -> list[Found]:
    answer = await _answer(
        client.build_request(
            "POST",
            settings().serper_url,
            json={"q": asked.query, "num": asked.most},
            headers={"X-API-KEY": asked.key},
        ),
        client,
        "Serper",
    )
    return [_found(each, "title", "link", "snippet") for each in _mappings(answer.get("organic"))]


async def _jina(asked: _Asked, client: httpx2.AsyncClient) -> list[Found]:
    answer = await _answer(
        client.build_request(
            "GET",
            settings().jina_url,
            params={"q": asked.query},
            headers={
                "Authorization": f"Bearer {asked.key}",
                "Accept": "application/json",
                "X-Respond-With": "no-content",  # titles and descriptions, not whole pages
            },
        ),
        client,
        "Jina",
    )
    return [_found(each, "title", "url", "description") for each in _mappings(answer.get("data"))]


async def _duckduckgo(asked: _Asked, client: httpx2.AsyncClient) -> list[Found]:
    del client  # the package brings one of its own, which looks like a browser

    def ask() -> list[dict[str, Any]]:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException

        try:
            engine = DDGS(timeout=max(1, int(asked.timeout_s)))
            return engine.text(asked.query, max_results=asked.most, backend="duckduckgo")
        except DDGSException as error:
            if "No results" in str(error):
                return []
            raise ToolFailure(f"DuckDuckGo: {error}") from None

    return [_found(each, "title", "href", "body") for each in await in_thread(ask)]


async def _answer(
    request: httpx2.Request, client: httpx2.AsyncClient, provider: str
) -> Mapping[str, Any]:
    try:
        response = await client.send(request)
    except (httpx2.TransportError, httpx2.InvalidURL, RefusedAddressError) as error:
        raise ToolFailure(f"{provider}: {type(error).__name__}: {error}") from None
    if not response.is_success:
        said = response.text.strip()[:200]
        raise ToolFailure(f"{provider} answers {response.status_code} {said}".rstrip())
    try:
        answer = response.json()
    except ValueError:
        raise ToolFailure(f"{provider} answers no JSON") from None
    if not isinstance(answer, dict):
        raise ToolFailure(f"{provider} answers no JSON object")
    return cast("dict[str, Any]", answer)


def _mappings(value: object) -> Iterable[Mapping[str, Any]]:
    listed = cast("list[Any]", value) if isinstance(value, list) else []
    return (each for each in listed if isinstance(each, dict))


def _found(result: Mapping[str, Any], title: str, url: str, snippet: str) -> Found:
    texts = (" ".join(str(result.get(name) or "").split()) for name in (title, url, snippet))
    return Found(*texts)


def _listed(found: list[Found]) -> str:
    return "\n\n".join(
        "\n".join(
            each for each in (f"{number}. {one.title}", one.url, one.snippet[:_SNIPPET]) if each
        )
        for number, one in enumerate(found, 1)
    )
