"""An asynchronous HTTP client that connects to checked addresses only.

Apart from its synchronous sibling because it is httpx2's, which the clients of MCP take, and which
comes with the extra `agent` only.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import httpx2

from mloc_dagster.net.addresses import addresses_of, check_address
from mloc_dagster.net.guarded_transport import proxy_for


def guarded_async_client(
    *,
    private: bool,
    setting: str,
    check: Callable[[httpx2.Request], None] = lambda request: None,
    **options: Any,
) -> httpx2.AsyncClient:
    """Returns an HTTP client whose every connection goes to an address that was checked.

    Args:
        private: Whether private and loopback addresses may be reached.
        setting: What decides on that, for the message.
        check: Takes each request, each redirect's too, and raises what the client's calls are to
            raise.
        options: Of `httpx2.AsyncClient`.

    Raises:
        RefusedAddressError: From the client's calls, for a URL that is refused.
    """

    async def hook(request: httpx2.Request) -> None:
        check(request)

    return httpx2.AsyncClient(
        transport=_GuardedTransport(private, setting), event_hooks={"request": [hook]}, **options
    )


class _GuardedTransport(httpx2.AsyncBaseTransport):
    """Connects to checked addresses; TLS and the `Host` header keep the URL's name."""

    def __init__(self, private: bool, setting: str) -> None:
        self._private = private
        self._setting = setting
        self._context: ssl.SSLContext | None = None
        # One for each host: a pool knows addresses, and TLS was checked for a name.
        self._transports: dict[str, httpx2.AsyncHTTPTransport] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        host = request.url.host
        addresses = await asyncio.to_thread(addresses_of, host)
        for address in addresses:
            check_address(address, private=self._private, setting=self._setting)
        proxy = proxy_for(request.url.scheme, request.url.netloc.decode("ascii"))
        if proxy is not None:
            return await self._transport(f"proxy {proxy}", proxy).handle_async_request(request)
        if not addresses:
            raise httpx2.ConnectError(f"{host} has no address here", request=request)
        return await self._connected(request, addresses)

    async def _connected(self, request: httpx2.Request, addresses: list[str]) -> httpx2.Response:
        transport = self._transport(request.url.host, None)
        *others, last = [_pinned(request, each) for each in addresses]
        for pinned in others:
            try:
                return await transport.handle_async_request(pinned)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue  # nothing of the request was sent
        return await transport.handle_async_request(last)

    def _transport(self, key: str, proxy: str | None) -> httpx2.AsyncHTTPTransport:
        if key not in self._transports:
            self._context = self._context or httpx2.create_ssl_context()
            self._transports[key] = httpx2.AsyncHTTPTransport(verify=self._context, proxy=proxy)
        return self._transports[key]

    async def aclose(self) -> None:
        for each in self._transports.values():
            await each.aclose()


def _pinned(request: httpx2.Request, address: str) -> httpx2.Request:
    return httpx2.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )
