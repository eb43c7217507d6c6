"""Which addresses HTTP may lead to, where somebody else than the operator named the URL.

Clouds answer any process of a machine with that machine's credentials, at link-local addresses:
these are refused whatever the settings. A name is resolved once for each request, each redirect's
too; every address that it has is checked, and the connection goes to an address that was checked.

Libraries against server-side request forgery were looked at (advocate, safehttpx, url_jail): none
has a synchronous httpx client, or refuses link-local addresses where private ones are allowed.
"""

from __future__ import annotations

import socket
import ssl
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from threading import Lock
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from mloc_dagster.errors import InputError

_Address = IPv4Address | IPv6Address

# Where clouds serve credentials outside of the link-local ranges: Alibaba, AWS over IPv6, Azure,
# Oracle.
_METADATA = frozenset(
    map(ip_address, ("100.100.100.200", "fd00:ec2::254", "168.63.129.16", "192.0.0.192"))
)

# An IPv4 address in the last four bytes: as it was written first, NAT64, NAT64 of a network's own.
_WITH_IPV4 = tuple(map(IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))


class RefusedAddressError(InputError):
    """A URL that leads to an address that may not be reached; the message names no URL."""


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


def check_address(address: str, *, private: bool, setting: str) -> None:
    """Looks at an IP address.

    Args:
        address: Such as `10.0.0.1`, `fe80::1%eth0`.
        private: Whether private and loopback addresses may be reached.
        setting: What decides on that, for the message.

    Raises:
        RefusedAddressError: If nothing may be fetched from there.
    """
    meant = _unwrapped(ip_address(address.partition("%")[0]))
    if meant.is_link_local or meant in _METADATA:
        raise RefusedAddressError(f"{meant} is link-local: nothing is fetched from there")
    if not private and not meant.is_global:
        raise RefusedAddressError(f"{meant} is a private address, and {setting} forbids these")


def addresses_of(host: str) -> list[str]:
    """Returns the addresses of a host, in the order to try them; none when it has none here.

    Any spelling that the system takes for an address (`0x7f000001`, `017700000001`) is resolved.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


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
        proxy = _proxy_for(request.url)
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


def _proxy_for(url: httpx.URL) -> str | None:
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(url.netloc.decode("ascii")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _unwrapped(address: _Address) -> _Address:
    """Returns the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    # ::1 and :: are addresses of their own.
    if int(address) > 1 and any(address in each for each in _WITH_IPV4):
        return IPv4Address(address.packed[12:])
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
