"""Archives of weights from elsewhere: downloaded once, checked, and kept unpacked."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

import httpx

from mloc_dagster.errors import InputError, TerminalError, TransientError
from mloc_dagster.executors.archives import SUFFIXES, unpack
from mloc_dagster.executors.training.store_transfer import sha256_of
from mloc_dagster.net.addresses import RefusedAddressError, guarded_client
from mloc_dagster.net.files import file_system
from mloc_dagster.net.reach import current_reach
from mloc_dagster.results.files import BUFFER_BYTES, TEMPORARY_PREFIX

MAX_BYTES = 1 << 40  # 500 billion parameters of two bytes: more is a mistake
TIMEOUT_S = 60.0
_SHA256 = re.compile(r"sha256=([0-9a-f]{64})")
_PASSING_STATUSES = frozenset((408, 425, 429))


def kept_folder(cache_dir: Path, key: str, fill: Callable[[Path], None]) -> Path:
    """Returns the folder that is kept under a key; it is made and filled when there is none.

    Args:
        cache_dir: Where folders are kept. Nothing deletes them.
        key: What the content depends on.
        fill: Fills a new folder. The folder gets its name only when this returned.
    """
    target = cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]
    if target.is_dir():
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    coming = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=cache_dir))
    try:
        fill(coming)
        try:
            coming.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was quicker
                raise
    finally:
        shutil.rmtree(coming, ignore_errors=True)
    return target


def unpacked_archive(path: Path, cache_dir: Path, place: str, sha256: str | None = None) -> Path:
    """Returns the folder that an archive on this machine is unpacked to.

    Args:
        path: The archive.
        cache_dir: Where unpacked archives are kept.
        place: What the user calls it, for messages.
        sha256: What it must hash to; None for anything.

    Raises:
        InputError: If it is no sound archive.
        TerminalError: If its sha256 is another.
    """
    check_suffix(place)
    found = sha256_of(path)
    _check_sha256(found, sha256, place)
    return kept_folder(cache_dir, f"sha256 {found}", lambda to: unpack(path, to, place))


def downloaded_archive(url: str, cache_dir: Path) -> Path:
    """Returns the folder that an archive behind a URL is unpacked to.

    It is downloaded again only if the server says that it is another one meanwhile, or does not
    say. `#sha256=…` at the end of the URL checks the content, and spares the asking.

    Args:
        url: An http(s) or fsspec URL.
        cache_dir: Where unpacked archives are kept.

    Raises:
        InputError: If there is no such archive, or it is not a sound one.
        TerminalError: If its sha256 is another than the URL says.
        TransientError: If it cannot be had now.
    """
    address, fragment = urldefrag(url)
    said = _SHA256.fullmatch(fragment)
    expected = said[1] if said else None
    check_suffix(address)

    def fetch(blocks: Iterable[bytes], key: str | None) -> Path:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, dir=cache_dir) as scratch:
            path = Path(scratch) / Path(urlsplit(address).path).name
            found = _write(blocks, path, address)
            _check_sha256(found, expected, address)
            return kept_folder(
                cache_dir, key or f"sha256 {found}", lambda to: unpack(path, to, address)
            )

    def there(key: str) -> bool:
        return (cache_dir / hashlib.sha256(key.encode()).hexdigest()[:32]).is_dir()

    cache_dir.mkdir(parents=True, exist_ok=True)
    key = f"sha256 {expected}" if expected else None
    if key and there(key):
        return kept_folder(cache_dir, key, lambda _: None)
    with _opened(address) as (state, blocks):
        key = key or (f"url {address} {state}" if state else None)
        if key and there(key):
            return kept_folder(cache_dir, key, lambda _: None)
        return fetch(blocks, key)


def check_suffix(place: str) -> None:
    """Raises if a path or URL does not look like an archive.

    Raises:
        InputError: With the suffixes that would have worked.
    """
    if not urlsplit(place).path.endswith(SUFFIXES):
        raise InputError(
            f"checkpoint.load: {place!r} is neither a folder nor an archive ({', '.join(SUFFIXES)})"
        )


def _check_sha256(found: str, expected: str | None, place: str) -> None:
    if expected is not None and found != expected:
        raise TerminalError(
            f"checkpoint.load: the sha256 of {place!r} is {found}, expected {expected}"
        )


def _write(blocks: Iterable[bytes], path: Path, address: str) -> str:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in blocks:
            size += len(block)
            if size > MAX_BYTES:
                raise InputError(f"{address} is larger than {MAX_BYTES:,} bytes")
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextmanager
def _opened(address: str) -> Generator[tuple[str, Iterable[bytes]]]:
    """Yields what tells a file from a later one of the same URL, if anything, and its content."""
    opened = _over_http if address.startswith(("http://", "https://")) else _over_fsspec
    with opened(address) as found:
        yield found


@contextmanager
def _over_http(address: str) -> Generator[tuple[str, Iterable[bytes]]]:
    reach = current_reach()
    try:
        with (
            guarded_client(
                private=reach.private_addresses,
                setting=reach.private_setting,
                follow_redirects=True,
                timeout=TIMEOUT_S,
            ) as client,
            client.stream("GET", address, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.is_client_error and response.status_code not in _PASSING_STATUSES:
                raise InputError(f"checkpoint.load: {address} answered {response.status_code}")
            response.raise_for_status()
            names = ("etag", "last-modified", "content-length")
            marks = [response.headers.get(name, "") for name in names]
            yield " ".join(marks) if any(marks[:2]) else "", response.iter_bytes(BUFFER_BYTES)
    except (RefusedAddressError, httpx.InvalidURL) as error:
        raise InputError(f"checkpoint.load: {address}: {error}") from error
    except httpx.HTTPError as error:
        raise TransientError(f"{address} could not be downloaded: {error}") from error


@contextmanager
def _over_fsspec(address: str) -> Generator[tuple[str, Iterable[bytes]]]:
    try:
        system, path = file_system(address)
        state = str(system.ukey(path))  # over size, time and etag, whatever the store has
        with closing(system.open(path, "rb")) as file:
            yield state, _blocks(file)
    except (ValueError, ImportError) as error:  # an unknown protocol, or one without its package
        raise InputError(f"checkpoint.load: {address} cannot be read here: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"checkpoint.load: {address} does not exist") from error
    except OSError as error:
        raise TransientError(f"{address} could not be read: {error}") from error


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(BUFFER_BYTES):
        yield block
