"""A file that is fetched: it appears whole, and goes on from where the connection broke."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, Never, Self

import httpx

from mloc_dagster.client.call import Ask
from mloc_dagster.client.errors import ApiAwayError
from mloc_dagster.client.flow import Flow
from mloc_dagster.errors import DataError
from mloc_dagster.results.local_files import LocalFiles

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


class Download(Flow[Never]):
    """Writes an answer into a file; use it as a context manager.

    Args:
        ask: Asks for all of it.
        target: Where it appears; a folder takes it under `name`.
        name: What it is called.

    Attributes:
        target: The file.
    """

    def __init__(self, ask: Ask, target: Path, name: str) -> None:
        super().__init__()
        self.target = (target / name if target.is_dir() else target).absolute()
        self._open = ExitStack()
        self._ask = ask
        self._etag = ""
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        """Creates a temporary file beside the target.

        Raises:
            DataError: If the folder takes none.
        """
        try:
            self._file = self._open.enter_context(LocalFiles().create(str(self.target)))
        except OSError as error:
            raise _unwritable(self.target, error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the file in its place; after an error nothing of it is left."""
        self._open.__exit__(kind, error, trace)

    def ask(self) -> Ask:
        """Returns the request for what is missing; for all, where nobody says it is the same."""
        # Ranges are of what is stored, so it may not be compressed on its way.
        headers = {**self._ask.headers, "Accept-Encoding": "identity"}
        have = self._opened().tell()
        if have and self._etag:
            headers |= {"Range": f"bytes={have}-", "If-Range": self._etag}
        return replace(self._ask, headers=headers)

    def begin(self, response: httpx.Response) -> None:
        """Goes on where it was, or from the start if that is what came."""
        file = self._opened()
        found = _CONTENT_RANGE.match(response.headers.get("content-range", ""))
        partial = response.status_code == httpx.codes.PARTIAL_CONTENT
        if partial and (found is None or int(found[1]) != file.tell()):
            self._etag = ""
            raise ApiAwayError(f"{self._ask.path}: another part came than the one asked for")
        if not partial:
            file.seek(0)
            file.truncate()
            etag = response.headers.get("etag", "")
            self._etag = "" if etag.startswith("W/") else etag

    def feed(self, block: bytes) -> Iterable[Never]:
        """Writes a block.

        Raises:
            DataError: If the disk does not take it.
        """
        try:
            self._opened().write(block)
        except OSError as error:
            raise _unwritable(self.target, error) from error
        if self._etag:
            self.advanced()
        return ()

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            raise RuntimeError("a download is a context manager")
        return self._file


def _unwritable(target: Path, error: OSError) -> DataError:
    return DataError(f"cannot write {target}: {error.strerror or error}")
