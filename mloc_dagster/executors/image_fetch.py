"""The bytes behind an image's reference: a file, a URL, a `data:` URI, or part of the task."""

from __future__ import annotations

import hashlib
import re
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Lock
from typing import BinaryIO, cast

import httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from mloc_dagster import __version__
from mloc_dagster.data.inline_images import TASK_PROTOCOL, data_uri_bytes
from mloc_dagster.errors import InputError
from mloc_dagster.executors.timed_calls import HangingError, TimedCalls, TooSlowError
from mloc_dagster.net.addresses import RefusedAddressError, guarded_client
from mloc_dagster.net.files import uploaded_sha256
from mloc_dagster.net.reach import current_reach

ATTEMPTS = 3
MAX_REDIRECTS = 5
_PASSING_STATUSES = frozenset((408, 425, 429, 500, 502, 503, 504))
_HEADERS = {
    "User-Agent": f"mloc/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # an image is compressed already
}
_HTTP = re.compile(r"https?://", re.IGNORECASE)

# fsspec has a client of its own for these, which looks at no address.
_CHAINED_HTTP = re.compile(r"::\s*https?:", re.IGNORECASE)
_LISTS_OF_URLS = re.compile(r"(?:^|::)\s*(?:reference|generic)\b", re.IGNORECASE)


class FetchError(ValueError):
    """An image that cannot be had, for this reason."""


class _PassingError(FetchError):
    """What may be better the next time."""


class ImageFetcher:
    """Fetches images within limits; may be used from several threads at once.

    Args:
        open_file: Reads a file of the task's own folder.
        max_bytes: Size of the largest image.
        timeout_s: For one image, with all its attempts.
        private_addresses: Whether URLs may lead to private and loopback addresses.
    """

    def __init__(
        self,
        open_file: Callable[[str], bytes],
        *,
        max_bytes: int,
        timeout_s: float,
        private_addresses: bool = True,
    ) -> None:
        # Kept here: downloads run in threads of their own.
        self._reach = current_reach()
        self._open_file = open_file
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._private = self._reach.private(private_addresses, "MLOC_IMAGE_PRIVATE_ADDRESSES")
        self._client: httpx.Client | None = None
        self._calls = TimedCalls(timeout_s)
        self._lock = Lock()
        self._closed = False

    def fetch(self, reference: str) -> bytes:
        """Returns the bytes; a failure of the network that may pass is tried again first.

        Raises:
            FetchError: If they cannot be had, whatever the reason; it names no reference.
        """
        try:
            if reference.startswith("data:"):
                return self._limited(data_uri_bytes(reference))
            deadline = time.monotonic() + self._timeout_s
            return self._calls.call(partial(self._with_attempts, reference, deadline))
        except TooSlowError:
            raise self._too_slow() from None
        except HangingError as error:
            raise FetchError(str(error)) from None
        except FetchError:
            raise
        except (ValueError, InputError) as error:
            raise FetchError(str(error)) from None
        except Exception as error:  # file systems and what they stand on raise what they like
            reason = " ".join(str(error).split())
            raise FetchError(f"{type(error).__name__}: {reason}".removesuffix(": ")) from error

    def _with_attempts(self, reference: str, deadline: float) -> bytes:
        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.25, max=2.0) + wait_random(0.0, 0.25),
            retry=retry_if_exception_type(_PassingError),
            reraise=True,
        )
        if reference.startswith(TASK_PROTOCOL):
            return attempts(self._of_task, reference.removeprefix(TASK_PROTOCOL))
        if _HTTP.match(reference):
            return attempts(self._download, reference, deadline)
        self._reach.check_place(reference)
        data = attempts(self._read, reference)
        expected = uploaded_sha256(reference)
        if expected is not None and hashlib.sha256(data).hexdigest() != expected:
            raise FetchError("it is no longer what was sent with the submission")
        return data

    def close(self) -> None:
        """Ends connections, and all waiting for images."""
        self._calls.close()
        with self._lock:
            self._closed = True
            if self._client is not None:
                self._client.close()
                self._client = None

    def _of_task(self, name: str) -> bytes:
        try:
            return self._limited(self._open_file(name))
        except FileNotFoundError:
            raise FetchError("the task's folder has no such file") from None
        except InputError as error:
            raise FetchError(str(error)) from None
        except OSError as error:
            raise _PassingError(f"it cannot be read: {error}") from error

    def _limited(self, data: bytes) -> bytes:
        if len(data) > self._max_bytes:
            raise self._too_large(f"{len(data):,} bytes")
        return data

    def _too_large(self, size: str) -> FetchError:
        return FetchError(f"{size} are more than MLOC_IMAGE_MAX_BYTES allows: {self._max_bytes:,}")

    def _read(self, reference: str) -> bytes:
        """Reads a path, or a URL of any file system that fsspec knows."""
        import fsspec

        try:
            if _CHAINED_HTTP.search(reference):
                raise FetchError("HTTP inside of another file system is not read")
            if _LISTS_OF_URLS.search(reference):
                raise FetchError("lists of references, which may lead anywhere, are not read")
            if "://" in reference:
                with fsspec.open(reference, "rb") as file:
                    data = cast(BinaryIO, file).read(self._max_bytes + 1)
            else:
                path = Path(reference).expanduser()
                mode = path.stat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise FetchError("it is no file but a device or a pipe")
                with path.open("rb") as file:
                    data = file.read(self._max_bytes + 1)
        except FileNotFoundError:
            raise FetchError("there is no such file") from None
        except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
            raise FetchError(error.strerror or str(error)) from None
        except (ValueError, ImportError) as error:  # a protocol nobody knows, or not installed
            raise FetchError(str(error)) from None
        except OSError as error:
            raise _PassingError(f"it cannot be read: {error}") from error
        if len(data) > self._max_bytes:
            raise self._too_large(f"more than {self._max_bytes:,} bytes")
        return data

    def _download(self, url: str, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        try:
            with self._http().stream("GET", url, timeout=left) as response:
                self._check_status(response)
                return self._body(response, deadline)
        except httpx.TimeoutException:
            raise self._too_slow() from None
        except httpx.TooManyRedirects:
            raise FetchError(f"more than {MAX_REDIRECTS} redirects") from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, RefusedAddressError) as error:
            raise FetchError(str(error)) from None
        except httpx.TransportError as error:
            raise _PassingError(f"{type(error).__name__}: {error}") from error

    def _check_status(self, response: httpx.Response) -> None:
        if response.is_success:
            announced = response.headers.get("Content-Length", "")
            if announced.isdigit() and int(announced) > self._max_bytes:
                raise self._too_large(f"{int(announced):,} bytes")
            return
        reason = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
        kind = _PassingError if response.status_code in _PASSING_STATUSES else FetchError
        raise kind(reason)

    def _body(self, response: httpx.Response, deadline: float) -> bytes:
        data = bytearray()
        for block in response.iter_bytes():
            data += block
            if len(data) > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes:,} bytes")
            # A server that sends a byte now and then never meets the client's own time limit.
            if time.monotonic() > deadline:
                raise self._too_slow()
        return bytes(data)

    def _too_slow(self) -> FetchError:
        return FetchError(f"it took longer than MLOC_IMAGE_TIMEOUT_S allows: {self._timeout_s:g} s")

    def _http(self) -> httpx.Client:
        with self._lock:
            if self._closed:  # another attempt of a download that nobody waits for
                raise FetchError("it was given up")
            if self._client is None:
                private, setting = self._private
                self._client = guarded_client(
                    private=private,
                    setting=setting,
                    follow_redirects=True,
                    max_redirects=MAX_REDIRECTS,
                    headers=_HEADERS,
                )
            return self._client
