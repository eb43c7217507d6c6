"""Files on any fsspec file system whose uploads are atomic: object stores, and memory."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import IO, Any

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from mloc_dagster.errors import InputError, MissingExtraError
from mloc_dagster.results.files import BUFFER_BYTES

# Object stores want parts of at least 5 MiB and at most 10,000 of them: 80 GB a file.
_UPLOAD_PART_BYTES = 8 << 20

_REQUESTS_AT_ONCE = 16

_EXTRAS = {"s3": "s3", "s3a": "s3"}


class RemoteFiles:
    """Files behind fsspec. Implements `Files`.

    Args:
        file_system: An fsspec file system that was made without a listings cache.
    """

    def __init__(self, file_system: Any) -> None:
        self._fs = file_system
        # Memory files share one position among all readers, and show themselves half written.
        self._in_memory = file_system.protocol == "memory"

    def exists(self, key: str) -> bool:
        """Tells whether a file or a folder of that name exists."""
        return bool(self._fs.exists(key))

    def size(self, key: str) -> int:
        """Returns a file's bytes."""
        info = self._fs.info(key)
        if info["type"] != "file":
            raise IsADirectoryError(key)
        return int(info["size"])

    def times(self, keys: Sequence[str]) -> dict[str, float]:
        """Returns when files were written, in seconds since 1970."""
        if not keys:
            return {}
        # One request each, and most of it is waiting.
        with ThreadPoolExecutor(min(len(keys), _REQUESTS_AT_ONCE)) as pool:
            times = pool.map(self._time, keys)
            return {key: t for key, t in zip(keys, times, strict=True) if t is not None}

    def _time(self, key: str) -> float | None:
        try:
            written = self._fs.modified(key)
        except FileNotFoundError:
            return None
        return float(written.timestamp())

    def read(self, key: str) -> bytes:
        """Returns a file's content."""
        return bytes(self._fs.cat_file(key))

    def write(self, key: str, data: bytes) -> None:
        """Writes a whole file."""
        self._fs.pipe_file(key, bytes(data))

    @contextmanager
    def open(self, key: str) -> Generator[IO[bytes]]:
        """Opens a file for buffered reading."""
        if self._in_memory:
            yield io.BytesIO(self.read(key))
            return
        raw = self._fs.open(key, "rb", block_size=4 * BUFFER_BYTES)
        with closing(io.BufferedReader(raw, BUFFER_BYTES)) as file:
            yield file

    @contextmanager
    def create(self, key: str) -> Generator[IO[bytes]]:
        """Streams a file that appears when the block ends, and not at all when it raises."""
        if self._in_memory:
            buffer = io.BytesIO()
            yield buffer
            self.write(key, buffer.getvalue())
            return
        raw = self._fs.open(key, "wb", block_size=_UPLOAD_PART_BYTES)
        try:
            # fsspec's own write costs microseconds, and rows are written one by one.
            file = io.BufferedWriter(raw, BUFFER_BYTES)
            yield file
            file.flush()
            file.detach()
            raw.close()
        except BaseException:
            try:
                raw.discard()
            finally:
                raw.closed = True  # or its finaliser would complete the upload
            raise

    def list(self, key: str) -> Iterable[str]:
        """Returns a folder's own files and folders."""
        try:
            found = self._fs.ls(key, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return [name for path in found if (name := self._below(key, path))]

    def sizes(self, key: str) -> dict[str, int]:
        """Returns the bytes of every file below a folder."""
        found = self._fs.find(key, detail=True)
        sizes = {self._below(key, path): int(info["size"]) for path, info in found.items()}
        sizes.pop("", None)
        return sizes

    def _below(self, key: str, path: str) -> str:
        """Returns the name below a folder; nothing for its own marker object, or a file itself."""
        prefix = str(self._fs._strip_protocol(key)).rstrip("/") + "/"  # noqa: SLF001
        path = path.rstrip("/")
        return path.removeprefix(prefix) if path.startswith(prefix) else ""

    def delete(self, key: str) -> None:
        """Removes a file, or a folder with all below it."""
        # One by one: fsspec's bulk removal takes * and ? in names for patterns.
        for path in self._fs.find(key):
            with suppress(FileNotFoundError):
                self._fs.rm_file(path)


def connect(url: str) -> tuple[RemoteFiles, str]:
    """Returns the files behind an fsspec URL, and the URL's path there.

    Raises:
        InputError: If fsspec does not know the protocol.
        MissingExtraError: If its package is not installed.
    """
    protocol = url.split("://", 1)[0]
    try:
        found: Any = fsspec.core.url_to_fs(url, use_listings_cache=False)  # pyright: ignore
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        if extra is None:
            raise InputError(f"cannot use {url!r}: {error}") from error
        raise MissingExtraError(f"storing results at {protocol}://", extra) from error
    except ValueError as error:
        raise InputError(f"cannot use {url!r} for results: {error}") from error
    file_system, path = found
    return RemoteFiles(file_system), str(path).rstrip("/")
