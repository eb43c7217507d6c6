"""fsspec's HTTP with checked addresses. A module of its own, because aiohttp is slow to import."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import aiohttp
from fsspec.implementations.http import (  # pyright: ignore[reportMissingTypeStubs]
    HTTPFileSystem,
)

from mloc_dagster.net.addresses import RefusedAddressError, check_address
from mloc_dagster.net.reach import Reach, current_reach


class GuardedHTTP(HTTPFileSystem):
    """Connects to addresses that the task that made it may reach, redirects' included."""

    cachable = False  # another task may reach other addresses

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options["get_client"] = partial(_client, current_reach())
        super().__init__(*arguments, **options)

    async def _info(self, url: str, **options: Any) -> Any:
        try:
            return await super()._info(url, **options)
        except FileNotFoundError as error:  # whatever the reason was
            if isinstance(error.__cause__, RefusedAddressError):
                raise error.__cause__ from None
            raise


async def _client(reach: Reach, **options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(socket_factory=partial(_socket, reach))
    return aiohttp.ClientSession(connector=connector, **options)


def _socket(reach: Reach, info: Any) -> socket.socket:
    """Makes the socket of a connection, once its address was checked."""
    family, kind, protocol, _, place = info
    private, setting = reach.private_addresses, reach.private_setting
    check_address(str(place[0]), private=private, setting=setting)
    return socket.socket(family, kind, protocol)
