"""The tool `http`: requests to the hosts of a list, through guarded connections."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Union

import httpx2

from mloc_dagster import __version__
from mloc_dagster.net import RefusedAddressError, guarded_async_client
from mloc_dagster.schema import HttpTool
from mloc_dagster.tools.failure import ToolFailure
from mloc_dagster.tools.idempotency import HEADER, idempotency_key

MAX_REDIRECTS = 5
_MOST_BYTES = 1 << 20
"""Of one answer; what is longer is cut."""

_READING = ("GET", "HEAD")
_USUAL_PORTS: Mapping[str, int] = {"http": 80, "https": 443}
_HEADERS = {"User-Agent": f"mloc/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}
_TEXT = re.compile(
    r"text/|application/([\w.+-]*\+)?(json|xml|yaml|javascript|x-ndjson)\b", re.IGNORECASE
)


def http_client(private: tuple[bool, str], **options: Any) -> httpx2.AsyncClient:
    """Returns a client for tools.

    Args:
        private: Whether private addresses may be reached, and the setting that decides.
        options: Of `guarded_async_client`.
    """
    return guarded_async_client(
        private=private[0],
        setting=private[1],
        max_redirects=MAX_REDIRECTS,
        timeout=None,  # each call has a limit for all of it
        **options,
    )


def allowing_client(tool: HttpTool, private: tuple[bool, str]) -> httpx2.AsyncClient:
    """Returns a client that sends what a tool allows and nothing else."""

    def check(request: httpx2.Request) -> None:
        if request.method not in tool.methods:
            raise ToolFailure(f"{request.method} is not allowed: {', '.join(tool.methods)}")
        check_host(request.url, tool.allow)

    return http_client(private, check=check, follow_redirects=True, headers=_HEADERS)


def check_host(url: httpx2.URL, allowed: tuple[str, ...]) -> None:
    """Checks that a URL leads to one of some hosts.

    Raises:
        ToolFailure: If not.
    """
    usual, name = _USUAL_PORTS.get(url.scheme), url.raw_host.decode("ascii").lower()
    if usual is None or not name:
        raise ToolFailure(f"{str(url)!r} is no http:// or https:// URL")
    host = f"[{name}]" if ":" in name else name
    port = usual if url.port is None else url.port
    if not any(_leads_to(each, host, port, usual) for each in allowed):
        where = host if port == usual else f"{host}:{port}"
        raise ToolFailure(f"{where} is not allowed: {', '.join(allowed)}")


def _leads_to(allowed: str, host: str, port: int, usual: int) -> bool:
    found = re.fullmatch(r"(.*?)(?::(\d+))?", allowed) if not allowed.endswith("]") else None
    name, wanted = (found[1], found[2]) if found else (allowed, None)
    if port != (int(wanted) if wanted else usual):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name


def http_function(tool: HttpTool, client: httpx2.AsyncClient) -> Callable[..., Awaitable[str]]:
    """Returns the tool."""

    async def http(
        url: str, method: str = tool.methods[0], body: str | None = None, content_type: str = ""
    ) -> str:
        headers = {"Content-Type": content_type or "application/json"} if body is not None else {}
        if method not in _READING and (key := idempotency_key()):
            headers[HEADER] = key
        try:
            request = client.stream(
                method, url, content=None if body is None else body.encode(), headers=headers
            )
            async with request as response:
                return await _read(response)
        except (httpx2.TransportError, httpx2.InvalidURL, RefusedAddressError) as error:
            raise ToolFailure(f"{_said(error)}") from None
        except httpx2.TooManyRedirects:
            raise ToolFailure(f"more than {MAX_REDIRECTS} redirects") from None

    hosts = ", ".join(tool.allow)
    if tool.methods == ("GET",):

        async def get(url: str) -> str:
            return await http(url)

        get.__doc__ = f"""Fetches what is at a URL of {hosts}.

        Args:
            url: The URL.
        """
        return get
    http.__doc__ = f"""Sends an HTTP request to {hosts}.

    Args:
        url: The URL.
        method: What the request does.
        body: What is sent with it.
        content_type: What the body is, by default application/json.
    """
    # Real types: the methods are known here only.
    http.__annotations__ = {
        "url": str,
        "method": Literal[tool.methods],
        "body": Union[str, None],  # noqa: UP007 - a value here, not an annotation
        "content_type": str,
        "return": str,
    }
    return http


async def _read(response: httpx2.Response) -> str:
    body, cut = bytearray(), False
    async for block in response.aiter_bytes():
        body += block
        if len(body) > _MOST_BYTES:
            cut = True
            break
    kind = response.headers.get("content-type", "")
    status = f"{response.status_code} {response.reason_phrase}".rstrip()
    if body and not _TEXT.match(kind or "text/"):
        return f"{status}\n({kind}, which is no text)"
    text = bytes(body[:_MOST_BYTES]).decode(response.charset_encoding or "utf-8", "replace")
    more = f"\n… (cut after {_MOST_BYTES:,} bytes)" if cut else ""
    return f"{status}\n{kind}\n\n{text}{more}" if body else status


def _said(error: Exception) -> str:
    said = str(error)
    if isinstance(error, RefusedAddressError | httpx2.InvalidURL):
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
