"""Files at any URL, through fsspec, within what the current task may reach."""

from __future__ import annotations

from typing import Any

from mloc_dagster.net.addresses import guarded_socket_factory
from mloc_dagster.net.reach import current_reach


def file_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path or URL, and the path in it.

    Args:
        url: A path, or a URL of any protocol that fsspec knows.

    Raises:
        InputError: If the current task may not read there.
        ImportError: If the protocol's package is not installed.
        ValueError: If there is no such protocol.
    """
    from fsspec.core import url_to_fs  # pyright: ignore[reportMissingTypeStubs]

    current_reach().check_place(url)
    if url.lower().startswith(("http://", "https://")):
        return _guarded_http(), url
    return url_to_fs(url)  # pyright: ignore[reportUnknownVariableType]


def _guarded_http() -> Any:
    """Returns fsspec's HTTP, whose connections go to checked addresses only, redirects' too."""
    import aiohttp
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    reach = current_reach()
    create = guarded_socket_factory(private=reach.private_addresses, setting=reach.private_setting)

    async def client(**options: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(socket_factory=create)
        return aiohttp.ClientSession(connector=connector, **options)

    return fsspec.filesystem("http", get_client=client, skip_instance_cache=True)
