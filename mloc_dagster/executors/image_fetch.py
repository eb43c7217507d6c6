"""The bytes behind an image's reference: a file, a URL, a `data:` URI, or part of the task."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from mloc_dagster.data.inline_images import TASK_PROTOCOL, data_uri_bytes
from mloc_dagster.errors import InputError
from mloc_dagster.executors.timed_calls import HangingError, TimedCalls, TooSlowError
from mloc_dagster.net.fetch import Fetcher, FetchError, OpenedFile, PassingFetchError
from mloc_dagster.net.reach import current_reach

ATTEMPTS = 3


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
        self._open_file = open_file
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        private = current_reach().private(private_addresses, "MLOC_IMAGE_PRIVATE_ADDRESSES")
        self._fetcher = Fetcher("image/*", private)
        self._calls = TimedCalls(timeout_s)

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
        except FetchError:
            raise
        except (HangingError, PassingFetchError, InputError, ValueError) as error:
            raise FetchError(str(error)) from None
        except Exception as error:  # file systems and what they stand on raise what they like
            reason = " ".join(str(error).split())
            raise FetchError(f"{type(error).__name__}: {reason}".removesuffix(": ")) from error

    def close(self) -> None:
        """Ends connections, and all waiting for images."""
        self._calls.close()
        self._fetcher.close()

    def _with_attempts(self, reference: str, deadline: float) -> bytes:
        attempts = Retrying(
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.25, max=2.0) + wait_random(0.0, 0.25),
            retry=retry_if_exception_type(PassingFetchError),
            reraise=True,
        )
        if reference.startswith(TASK_PROTOCOL):
            return attempts(self._of_task, reference.removeprefix(TASK_PROTOCOL))
        return attempts(self._download, reference, deadline)

    def _of_task(self, name: str) -> bytes:
        try:
            return self._limited(self._open_file(name))
        except FileNotFoundError:
            raise FetchError("the task's folder has no such file") from None
        except OSError as error:
            raise PassingFetchError(f"it cannot be read: {error}") from error

    def _limited(self, data: bytes) -> bytes:
        if len(data) > self._max_bytes:
            raise self._too_large(f"{len(data):,} bytes")
        return data

    def _download(self, reference: str, deadline: float) -> bytes:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        try:
            with self._fetcher.open(reference, left) as opened:
                return self._body(opened, deadline)
        except PassingFetchError as error:
            if isinstance(error.__cause__, httpx.TimeoutException):
                raise self._too_slow() from None
            raise

    def _body(self, opened: OpenedFile, deadline: float) -> bytes:
        if opened.size is not None and opened.size > self._max_bytes:
            raise self._too_large(f"{opened.size:,} bytes")
        data = bytearray()
        for block in opened.blocks:
            data += block
            if len(data) > self._max_bytes:
                raise self._too_large(f"more than {self._max_bytes:,} bytes")
            # A server that sends a byte now and then never meets the client's own time limit.
            if time.monotonic() > deadline:
                raise self._too_slow()
        return bytes(data)

    def _too_large(self, size: str) -> FetchError:
        return FetchError(f"{size} are more than MLOC_IMAGE_MAX_BYTES allows: {self._max_bytes:,}")

    def _too_slow(self) -> FetchError:
        return FetchError(f"it took longer than MLOC_IMAGE_TIMEOUT_S allows: {self._timeout_s:g} s")
