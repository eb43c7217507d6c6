"""An httpx client that connects to checked addresses only; apart, as httpx takes long to load.

Libraries against server-side request forgery were looked at (advocate, safehttpx, url_jail): none
has a synchronous httpx client, or refuses link-local addresses where private ones are allowed.
"""

from __future__ import annotations

import ssl
from threading import Lock
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from mloc_dagster.net.addresses import addresses_of, check_address


def guarded_client(*, private: bool, setting: str, **options: Any) -> httpx.Client:
    """Returns an HTTP client whose every connection goes to an address that was checked.

    Where the environment names a proxy, it is the proxy that resolves names and connects. The
    addresses that a name has here are checked all the same.

    Args:
        private: Whether private and loopback addresses may be reached.
        setting: What decides on that, for the message.
        options: Of `httpx.Client`.

    Raises:
        RefusedAddressError: From the client's calls, for a URL that is refused.
    """
    return httpx.Client(transport=_GuardedTransport(private, setting), **options)


class _GuardedTransport(httpx.BaseTransport):
    """Connects to checked addresses; TLS and the `Host` header keep the URL's name."""

    def __init__(self, private: bool, setting: str) -> None:
        self._private = private
        self._setting = setting
        self._context: ssl.SSLContext | None = None
        # One for each host: a pool knows addresses, and TLS was checked for a name.
        self._transports: dict[str, httpx.HTTPTransport] = {}
        self._lock = Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        addresses = addresses_of(host)
        for address in addresses:
            check_address(address, private=self._private, setting=self._setting)
        proxy = proxy_for(request.url.scheme, request.url.netloc.decode("ascii"))
        if proxy is not None:
            return self._transport(f"proxy {proxy}", proxy).handle_request(request)
        if not addresses:
            raise httpx.ConnectError(f"{host} has no address here", request=request)
        return self._connected(request, addresses)

    def _connected(self, request: httpx.Request, addresses: list[str]) -> httpx.Response:
        transport = self._transport(request.url.host, None)
        *others, last = [_pinned(request, each) for each in addresses]
        for pinned in others:
            try:
                return transport.handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing of the request was sent
        return transport.handle_request(last)

    def _transport(self, key: str, proxy: str | None) -> httpx.HTTPTransport:
        with self._lock:
            if key not in self._transports:
                self._context = self._context or httpx.create_ssl_context()
                self._transports[key] = httpx.HTTPTransport(verify=self._context, proxy=proxy)
            return self._transports[key]

    def close(self) -> None:
        with self._lock:
            for each in self._transports.values():
                each.close()


def _pinned(request: httpx.Request, address: str) -> httpx.Request:
    return httpx.Request(
        request.method,
        request.url.copy_with(host=address),
        headers=request.headers,
        stream=request.stream,
        extensions={**request.extensions, "sni_hostname": request.url.host},
    )


def proxy_for(scheme: str, netloc: str) -> str | None:
    """Returns the URL of the proxy that the environment names for a URL, if it does."""
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if not proxy or proxy_bypass(netloc):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"
