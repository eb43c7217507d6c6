"""Which addresses HTTP may lead to, where somebody else than the operator named the URL.

Clouds answer anybody on a machine with that machine's credentials, at link-local addresses: these
are refused whatever the settings. Names are resolved here, for each redirect anew, and the address
that was really connected to is looked at before anything of the answer is read.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.request import getproxies

import httpx

_Address = IPv4Address | IPv6Address

# Where clouds serve credentials outside of the link-local ranges: Alibaba, AWS over IPv6.
_METADATA = frozenset(map(ip_address, ("100.100.100.200", "fd00:ec2::254")))


class RefusedAddressError(ValueError):
    """A URL that leads where none may lead; the message says why and names no URL."""


def guarding_hooks(*, private: bool, setting: str) -> Mapping[str, list[Callable[[Any], None]]]:
    """Returns `event_hooks` for an `httpx.Client`: they look at each request, each redirect's too.

    Where the environment names a proxy, it is the proxy that resolves names and connects: the
    address that was connected to is then the proxy's, and is not looked at.

    Args:
        private: Whether private and loopback addresses may be reached.
        setting: What decides on that, for the message.

    Raises:
        RefusedAddressError: From the client's calls, for a URL that is refused.
    """

    def before(request: httpx.Request) -> None:
        for address in _addresses(request.url.host):
            check_address(address, private=private, setting=setting)

    def after(response: httpx.Response) -> None:
        # A name may have another address by the time the client connects.
        stream = response.extensions.get("network_stream")
        peer = stream.get_extra_info("server_addr") if stream is not None else None
        if peer and not getproxies():
            check_address(str(peer[0]), private=private, setting=setting)

    return {"request": [before], "response": [after]}


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


def _addresses(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return []  # the client meets the same error, or its proxy knows the name
    return [str(place[0]) for *_, place in found]


def _unwrapped(address: _Address) -> _Address:
    """Returns the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    if address.packed.startswith(b"\0\x64\xff\x9b" + bytes(8)):  # NAT64
        return IPv4Address(address.packed[12:])
    return address.ipv4_mapped or address.sixtofour or address
