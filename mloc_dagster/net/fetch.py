"""The one way to files that a task names: at a path, over HTTP, or on any file system of fsspec.

What the task may not reach is refused, and so is each connection to an address that HTTP may not
lead to, whatever redirects and DNS say.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO, TYPE_CHECKING, Any, Self, cast
from urllib.parse import unquote, urlsplit

from mloc_dagster import __version__
from mloc_dagster.errors import InputError, TransientError
from mloc_dagster.net.addresses import RefusedAddressError
from mloc_dagster.net.reach import UPLOADS_FOLDER, OutOfReachError, current_reach

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 60.0
MAX_REDIRECTS = 5

_BLOCK_BYTES = 1 << 20
_PASSING_STATUSES = frozenset((408, 425, 429))
_HEADERS = {
    "User-Agent": f"mloc/{__version__}",
    "Accept-Encoding": "identity",  # images and archives are compressed already
}
_HTTP = re.compile(r"https?://", re.IGNORECASE)
_UPLOAD = re.compile(rf"/{re.escape(UPLOADS_FOLDER)}/([0-9a-f]{{64}})/[^/]+$")
_CHANGED = "it is no longer what was sent with the submission: send it again"

# The limits of one download hold for its own connections only.
_CHAINED_HTTP = re.compile(r"::\s*https?:", re.IGNORECASE)
_LISTS_OF_URLS = re.compile(r"(?:^|::)\s*(?:reference|generic)\b", re.IGNORECASE)


class FetchError(InputError):
    """A file that cannot be had. The message is the reason, and names no place."""


class PassingFetchError(TransientError):
    """A file that cannot be had now. The message is the reason, and names no place."""


@dataclass(frozen=True, slots=True)
class OpenedFile:
    """A file that is being read.

    Attributes:
        blocks: Its content.
        size: Its size in bytes, where that is known before.
        version: Tells it from another file at the same place later; empty where nothing does.
    """

    blocks: Iterator[bytes]
    size: int | None
    version: str


class Fetcher:
    """Opens files for the current task; may be used from several threads at once.

    Args:
        accept: What HTTP servers are asked for.
        private: Whether HTTP may lead to private addresses, and the setting that decides; by
            default what holds for the task.
    """

    def __init__(self, accept: str = "*/*", private: tuple[bool, str] | None = None) -> None:
        # Kept here: a file may be opened in a thread of its own.
        self._reach = current_reach()
        default = self._reach.private_addresses, self._reach.private_setting
        self._private, self._setting = private or default
        self._accept = accept
        self._client: httpx.Client | None = None
        self._closed = False
        self._lock = Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections."""
        with self._lock:
            self._closed = True
            if self._client is not None:
                self._client.close()
                self._client = None

    @contextmanager
    def open(self, place: str, timeout_s: float = TIMEOUT_S) -> Generator[OpenedFile]:
        """Opens a file.

        Args:
            place: A path, or a URL of any protocol that fsspec knows.
            timeout_s: For each wait for an HTTP server.

        Raises:
            OutOfReachError: If the task may not read there.
            FetchError: If there is no such file, or it may not be had.
            PassingFetchError: If it cannot be had now. Both also while it is read.
        """
        self._reach.check_place(place)
        if _HTTP.match(place):
            with self._over_http(place, timeout_s) as opened:
                yield opened
        elif "://" in place or "::" in place:
            with _from_file_system(place) as opened:
                yield opened
        else:
            with _from_disk(Path(place).expanduser()) as opened:
                yield opened

    @contextmanager
    def _over_http(self, url: str, timeout_s: float) -> Generator[OpenedFile]:
        import httpx

        try:
            with self._http().stream("GET", url, timeout=timeout_s) as response:
                _check_status(response)
                marks = [response.headers.get(name, "") for name in ("etag", "last-modified")]
                size = response.headers.get("content-length", "")
                version = f"{' '.join(marks)} {size}" if any(marks) else ""
                blocks = response.iter_bytes()  # as they come: a caller may lose patience
                yield OpenedFile(blocks, int(size) if size.isdigit() else None, version)
        except httpx.TooManyRedirects:
            raise FetchError(f"more than {MAX_REDIRECTS} redirects") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, RefusedAddressError) as error:
            raise FetchError(str(error)) from error
        except httpx.TransportError as error:
            raise PassingFetchError(f"{type(error).__name__}: {error}") from error

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._closed:  # another attempt of a download that nobody waits for
                raise FetchError("it was given up")
            if self._client is None:
                from mloc_dagster.net.guarded_transport import guarded_client

                self._client = guarded_client(
                    private=self._private,
                    setting=self._setting,
                    follow_redirects=True,
                    max_redirects=MAX_REDIRECTS,
                    headers={**_HEADERS, "Accept": self._accept},
                )
            return self._client


def download(place: str, target: Path, what: str) -> None:
    """Writes the file at a place to the disk.

    Args:
        place: A path, or a URL of any protocol that fsspec knows.
        target: Where to.
        what: How it is called in errors.

    Raises:
        InputError: If there is no such file, or the task may not have it.
        TransientError: If it cannot be had now.
    """
    with reasons_for(what), Fetcher() as fetcher, fetcher.open(place) as opened:
        save(opened, target)


def save(opened: OpenedFile, target: Path, most: int | None = None) -> str:
    """Writes an opened file to the disk.

    Args:
        opened: The file.
        target: Where to.
        most: How many bytes it may have.

    Returns:
        Its sha256, in hex.

    Raises:
        FetchError: If it is larger.
    """
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for block in opened.blocks:
            size += len(block)
            if most is not None and size > most:
                raise FetchError(f"it is larger than {most:,} bytes")
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@contextmanager
def reasons_for(what: str) -> Generator[None]:
    """Puts what is fetched before the reason why it cannot be had.

    Raises:
        InputError: For a `FetchError`.
        TransientError: For a `PassingFetchError`.
    """
    try:
        yield
    except FetchError as error:
        raise InputError(f"{what}: {error}") from error
    except PassingFetchError as error:
        raise TransientError(f"{what}: {error}") from error


def file_system(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a path or URL, and the path in it.

    Args:
        url: A path, or a URL of any protocol that fsspec knows.

    Raises:
        OutOfReachError: If the current task may not read there.
        ImportError: If the protocol's package is not installed.
        ValueError: If there is no such protocol.
    """
    import fsspec  # pyright: ignore[reportMissingTypeStubs]
    from fsspec.core import url_to_fs  # pyright: ignore[reportMissingTypeStubs]

    current_reach().check_place(url)
    if "://" in url or "::" in url:
        guard_fsspec()
    if _HTTP.match(url):
        # Said here already, as fsspec takes what it cannot connect to for a file that is not there.
        why = current_reach().why_host_refused(urlsplit(url).hostname or "")
        if why is not None:
            raise OutOfReachError(f"{url}: {why}")
        # fsspec would take [::1] for a chain.
        return fsspec.filesystem("http"), url  # pyright: ignore[reportUnknownMemberType]
    return url_to_fs(url)  # pyright: ignore[reportUnknownVariableType]


@cache
def guard_fsspec() -> None:
    """Makes fsspec's HTTP guarded in this process, also within chains and lists of references."""
    import fsspec  # pyright: ignore[reportMissingTypeStubs]

    with suppress(ImportError):  # of aiohttp, without which fsspec has no HTTP either
        from mloc_dagster.net.guarded_http import GuardedHTTP

        for protocol in ("http", "https"):
            fsspec.register_implementation(protocol, GuardedHTTP, clobber=True)


def has_content(opened: AbstractContextManager[IO[bytes]], sha256: str) -> bool:
    """Tells whether a file has the content of a hash."""
    with opened as file:
        return hashlib.file_digest(cast(Any, file), "sha256").hexdigest() == sha256


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
        raise InputError(f"{path}: {_CHANGED}")


def uploaded_sha256(path: str) -> str | None:
    """Returns the hash that a file must have which came with a submission; None for others."""
    found = _UPLOAD.search(path)
    return found[1] if found else None


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if not response.is_success:
        passing = status in _PASSING_STATUSES or status >= 500
        kind = PassingFetchError if passing else FetchError
        raise kind(f"the server answers {status} {response.reason_phrase}".rstrip())


@contextmanager
def _from_file_system(url: str) -> Generator[OpenedFile]:
    if _CHAINED_HTTP.search(url):
        raise FetchError("HTTP inside of another file system is not read")
    if _LISTS_OF_URLS.search(url):
        raise FetchError("lists of references, which may lead anywhere, are not read")
    if url.startswith(("file://", "local://")) and "::" not in url:
        with _from_disk(Path(unquote(urlsplit(url).path))) as opened:
            yield opened
        return
    with _reasons_of_files():
        system, path = file_system(url)
        file = system.open(path, "rb")
        version = str(system.ukey(path))  # over size, time and etag, whatever the store has
    with file:
        yield OpenedFile(_blocks(file, url), None, version)


@contextmanager
def _from_disk(path: Path) -> Generator[OpenedFile]:
    with _reasons_of_files():
        found = path.stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise FetchError("it is no file but a device or a pipe")  # which may never end
        file = path.open("rb")
    with file:
        yield OpenedFile(_blocks(file, str(path)), found.st_size, "")


@contextmanager
def _reasons_of_files() -> Generator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FetchError("there is no such file") from None
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise FetchError(error.strerror or str(error)) from None
    except (ValueError, ImportError) as error:  # a protocol nobody knows, or not installed
        raise FetchError(f"it cannot be read here: {error}") from error
    except OSError as error:
        raise PassingFetchError(f"it cannot be read: {error}") from error


def _blocks(file: IO[bytes], place: str) -> Iterator[bytes]:
    """Yields a file's content; at its end an upload must be what was sent."""
    expected, digest = uploaded_sha256(place), hashlib.sha256()
    while True:
        with _reasons_of_files():
            block = file.read(_BLOCK_BYTES)
        if not block:
            break
        if expected is not None:
            digest.update(block)
        yield block
    if expected is not None and digest.hexdigest() != expected:
        raise FetchError(_CHANGED)
