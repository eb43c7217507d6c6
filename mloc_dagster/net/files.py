"""Files at any URL, through fsspec, within what the current task may reach."""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from typing import IO, Any, cast

from mloc_dagster.errors import InputError
from mloc_dagster.net.addresses import guarded_socket_factory
from mloc_dagster.net.reach import UPLOADS_FOLDER, current_reach

_UPLOAD = re.compile(rf"/{re.escape(UPLOADS_FOLDER)}/([0-9a-f]{{64}})/[^/]+$")


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


def has_content(opened: AbstractContextManager[IO[bytes]], sha256: str) -> bool:
    """Tells whether a file has the content of a hash."""
    with opened as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest() == sha256


def uploaded_sha256(path: str) -> str | None:
    """Returns the hash that a file must have which came with a submission; None for others."""
    found = _UPLOAD.search(path)
    return found[1] if found else None


def check_upload(system: Any, path: str) -> None:
    """Checks that a file that came with a submission is what was sent.

    Args:
        system: The fsspec file system it lies on.
        path: A file; others than uploads are not looked at.

    Raises:
        InputError: If its content was changed since.
    """
    expected = uploaded_sha256(path)
    if expected is not None and not has_content(system.open(path, "rb"), expected):
        raise InputError(f"{path} is no longer what was sent with the submission: send it again")


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
