"""Images by reference, fetched within a time limit, as the pictures that a model sees."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from threading import Lock, Thread
from typing import Any

import httpx
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from mloc_dagster.data import TASK_PROTOCOL, data_uri_bytes, image_kind
from mloc_dagster.errors import InputError
from mloc_dagster.net import Fetcher, FetchError, OpenedFile, PassingFetchError, current_reach
from mloc_dagster.redaction import redact
from mloc_dagster.results import Prompt
from mloc_dagster.settings import settings

THREAD_NAME = "mloc-timed"
MOST_LEFT_BEHIND = 32
"""Threads that hang at a time: behind a dead mount one more would be lost with every call."""


class TooSlowError(Exception):
    """A call that took too long."""


class HangingError(Exception):
    """A call that was not begun, since too many before it still hang."""


class TimedCalls:
    """Calls functions in threads that are left behind when their time is over.

    Nothing else ends a read from a file system that hangs, or a name that takes for ever to
    resolve. The threads are no pool's: those are waited for when the process ends.

    Args:
        timeout_s: For each call.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._lock = Lock()
        self._awaited: set[Future[Any]] = set()
        self._left_behind: set[Future[Any]] = set()
        self._closed = False

    def call[T](self, work: Callable[[], T]) -> T:
        """Returns what a function returns, and raises what it raises.

        Raises:
            TooSlowError: If its time is over.
            HangingError: If too many that were given up have not come back.
            CancelledError: Of `concurrent.futures`, if this is closed.
        """
        future: Future[T] = Future()
        with self._lock:
            self._left_behind = {each for each in self._left_behind if not each.done()}
            if len(self._left_behind) >= MOST_LEFT_BEHIND:
                raise HangingError(f"{len(self._left_behind)} reads that were given up still hang")
            self._awaited.add(future)
            if self._closed:
                future.cancel()
        Thread(target=_settle, args=(future, work), name=THREAD_NAME, daemon=True).start()
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            if future.done():  # it is the function's own
                return future.result()
            with self._lock:
                self._left_behind.add(future)
            raise TooSlowError from None
        finally:
            with self._lock:
                self._awaited.discard(future)

    def close(self) -> None:
        """Ends all waiting, also that of calls to come."""
        with self._lock:
            self._closed = True
            for future in self._awaited:
                future.cancel()


def _settle[T](future: Future[T], work: Callable[[], T]) -> None:
    if future.cancelled():
        return
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
        if future.set_running_or_notify_cancel():
            future.set_exception(error)
    else:
        if future.set_running_or_notify_cancel():
            future.set_result(result)


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


MAX_PIXELS = 80_000_000
"""Of one picture: 240 MB once it is decoded. A few kilobytes of a file can ask for far more."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_IMAGE_PARTS = ("image_url", "image")  # OpenAI's form, and that of most chat templates
_SHOWN_CHARACTERS = 100
_REDACTED_CHARACTERS = 4096
_MOST_REASON_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A picture.

    Attributes:
        picture: `PIL.Image.Image`, RGB, upright.
        sha256: Hex, over the bytes of its file.
    """

    picture: Any
    sha256: str


class ImageLoader:
    """Loads images for the rows of one shard; may be used from several threads at once.

    Args:
        open_file: Reads a file of the task's own folder.
    """

    def __init__(self, open_file: Callable[[str], bytes]) -> None:
        known = settings()
        self._fetcher = ImageFetcher(
            open_file,
            max_bytes=known.image_max_bytes,
            timeout_s=known.image_timeout_s,
            private_addresses=known.image_private_addresses,
        )

    def load(self, reference: str) -> LoadedImage:
        """Returns the picture that a reference means.

        Raises:
            ValueError: If it cannot be had, or is no image; the message names both, without the
                credentials that a URL may hold.
        """
        try:
            data = self._fetcher.fetch(reference)
            return LoadedImage(decode_image(data), hashlib.sha256(data).hexdigest())
        except (ValueError, FetchError) as error:
            # Before it is cut: half a password looks like none.
            reason = redact(str(error)[:_REDACTED_CHARACTERS])[:_MOST_REASON_CHARACTERS]
            raise ValueError(f"image {_shortened(reference)}: {reason}") from error

    def close(self) -> None:
        """Ends the connections."""
        self._fetcher.close()


def holds_images(prompt: Prompt) -> bool:
    """Tells whether a prompt shows the model anything."""
    return next(_image_parts(prompt), None) is not None


def image_references(prompt: Prompt) -> list[str]:
    """Returns the references of a prompt's images, in the order in which it has them.

    Raises:
        ValueError: If an image part has no reference.
    """
    return [_reference(part) for part in _image_parts(prompt)]


def decode_image(data: bytes) -> Any:
    """Returns the picture in a file's bytes: upright, in RGB, on white where it is transparent.

    No error quotes the bytes, nor a decoder that might: a row may name any file.

    Raises:
        ValueError: If it is none, broken, or too large to decode.
    """
    from PIL import Image, ImageOps

    if not data:
        raise ValueError("it is empty")
    kind = image_kind(data)
    if kind is None:
        raise ValueError(f"it is not an image ({', '.join(_FORMATS)})")
    try:
        # No other format is even tried: some of PIL's start programs.
        opened = Image.open(BytesIO(data), formats=_FORMATS)
        _check_pixels(opened.size)
        picture = ImageOps.exif_transpose(opened)
        if picture.has_transparency_data:
            paper = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(paper, picture.convert("RGBA"))
        return picture.convert("RGB")
    except _TooManyPixelsError as error:
        raise ValueError(str(error)) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more pixels than the {MAX_PIXELS:,} that are decoded") from None
    except Exception as error:  # each decoder raises what it likes on broken bytes
        raise ValueError(f"it is a broken {kind.upper()} image") from error


class _TooManyPixelsError(ValueError):
    """A picture that would fill the memory."""


def _check_pixels(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise _TooManyPixelsError(
            f"{width:,} × {height:,} pixels are more than the {MAX_PIXELS:,} that are decoded"
        )


def _image_parts(prompt: Prompt) -> Iterator[dict[str, Any]]:
    if isinstance(prompt, str):
        return
    for message in prompt:
        if not isinstance(message.content, str):
            yield from (part for part in message.content if part.get("type") in _IMAGE_PARTS)


def _reference(part: dict[str, Any]) -> str:
    image = part.get("image_url") if part["type"] == "image_url" else part
    url = image.get("url") if isinstance(image, dict) else image
    if not isinstance(url, str) or not url:
        raise ValueError("an image part of this row says not where the image is (image_url.url)")
    return url


def _shortened(reference: str) -> str:
    shown = redact(reference[:_REDACTED_CHARACTERS])
    if len(reference) <= _REDACTED_CHARACTERS and len(shown) <= _SHOWN_CHARACTERS:
        return shown
    return f"{shown[: _SHOWN_CHARACTERS - 1]}… ({len(reference):,} characters)"
