"""Which addresses HTTP may lead to, where somebody else than the operator named the URL.

Clouds answer any process of a machine with that machine's credentials, at link-local addresses:
these are refused whatever the settings. A name is resolved once for each request, each redirect's
too; every address that it has is checked, and the connection goes to an address that was checked.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

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


def _unwrapped(address: _Address) -> _Address:
    """Returns the IPv4 address that an IPv6 one stands for, if it does."""
    if isinstance(address, IPv4Address):
        return address
    # ::1 and :: are addresses of their own.
    if int(address) > 1 and any(address in each for each in _WITH_IPV4):
        return IPv4Address(address.packed[12:])
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else address)
