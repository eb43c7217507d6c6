"""Images by reference, as the pictures that a model sees."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from mloc_dagster.data.image_cells import image_kind
from mloc_dagster.executors.image_fetch import ImageFetcher
from mloc_dagster.net.fetch import FetchError
from mloc_dagster.redaction import redact
from mloc_dagster.results.rows import Prompt
from mloc_dagster.settings import settings

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
