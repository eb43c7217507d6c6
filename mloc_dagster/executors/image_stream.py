"""Loading rows' images beside the engine, so that no download holds up its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.executors.engines.protocol import EngineRequest
from mloc_dagster.executors.images import ImageLoader, LoadedImage, holds_images, image_references
from mloc_dagster.redaction import redact

THREADS = 8
AHEAD_ROWS = 16
"""Rows whose images are loaded or loading before the engine asks for them: they lie in memory."""

WINDOW_BYTES = 256 << 20
"""Decoded pictures that a window of rows may hold; the row that reaches it is the last."""

BYTES_PER_PIXEL = 3

_LOOK_S = 0.25  # how often waiting looks whether the task was cancelled


def with_pictures(
    requests: Iterator[EngineRequest],
    rows: int,
    open_file: Callable[[str], bytes],
    refuse: Callable[[EngineRequest, str], None],
    cancelled: Callable[[], bool],
) -> Generator[list[EngineRequest]]:
    """Yields the requests, in lists, with the pictures of their rows.

    What is ready never waits for what is not: a list is closed before pictures have to be waited
    for, and takes along those that came meanwhile. A slow server delays its own rows only, as long
    as there are fewer of these than are loaded at a time.

    Args:
        requests: Rendered rows.
        rows: Requests of a list at most, but for pictures.
        open_file: Reads a file of the task's own folder.
        refuse: Takes a request whose pictures cannot be had, and why.
        cancelled: Asked while nothing but waiting is left, and now and then besides.

    Raises:
        TaskCancelled: If the task was asked to stop.
    """
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="mloc-images")  # starts none by itself
    with closing(ImageLoader(open_file)) as loader:
        loading = _Loading(refuse, cancelled)
        ready: list[EngineRequest] = []
        try:
            for request in requests:
                if holds_images(request.row.prompt):
                    loading.add(request, pool.submit(_load, loader, request))
                else:
                    ready.append(request)
                if len(ready) < rows and len(loading) < AHEAD_ROWS:
                    continue
                if ready := ready + loading.finished():
                    yield ready
                    ready = []
                elif len(loading) >= AHEAD_ROWS:
                    yield loading.next()
                loading.look()
            if ready:
                yield ready
            while len(loading):
                yield loading.next()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _load(loader: ImageLoader, request: EngineRequest) -> list[LoadedImage]:
    return [loader.load(reference) for reference in image_references(request.row.prompt)]


class _Loading:
    """Requests whose pictures are being loaded."""

    def __init__(
        self, refuse: Callable[[EngineRequest, str], None], cancelled: Callable[[], bool]
    ) -> None:
        self._refuse = refuse
        self._cancelled = cancelled
        self._requests: dict[Future[list[LoadedImage]], EngineRequest] = {}
        self._looked = time.monotonic()

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: EngineRequest, future: Future[list[LoadedImage]]) -> None:
        self._requests[future] = request

    def next(self) -> list[EngineRequest]:
        """Waits until pictures are loaded; returns their requests, fewer where some are refused."""
        while not wait(self._requests, timeout=_LOOK_S, return_when=FIRST_COMPLETED).done:
            self._look_now()
        return self.finished()

    def finished(self) -> list[EngineRequest]:
        """Returns the requests whose pictures are loaded by now."""
        done = [future for future in self._requests if future.done()]
        return [shown for each in done if (shown := self._shown(self._requests.pop(each), each))]

    def look(self) -> None:
        """Looks whether the task was cancelled, if that was long ago."""
        if time.monotonic() - self._looked >= _LOOK_S:
            self._look_now()

    def _look_now(self) -> None:
        self._looked = time.monotonic()
        if self._cancelled():
            raise TaskCancelled("stopped while images were loading")

    def _shown(
        self, request: EngineRequest, future: Future[list[LoadedImage]]
    ) -> EngineRequest | None:
        try:
            images = future.result()
        except ValueError as error:
            self._refuse(request, str(error))
            return None
        except Exception as error:  # noqa: BLE001  whatever it is, other rows are unharmed
            self._refuse(request, redact(f"its images: {type(error).__name__}: {error}"))
            return None
        rendered = replace(
            request.rendered,
            images=tuple(each.picture for each in images),
            image_ids=tuple(each.sha256 for each in images),
        )
        return replace(request, rendered=rendered)


def windows(requests: Iterator[EngineRequest | None], rows: int) -> Iterator[list[EngineRequest]]:
    """Yields the requests in lists of `rows`, or of fewer where their pictures would fill memory.

    A list also ends where there are no more requests for now; it may be empty then.

    Args:
        requests: With their pictures.
        rows: Requests of a list at most.
    """
    window: list[EngineRequest] = []
    held = 0
    for request in requests:
        if request is None:
            yield window
            window, held = [], 0
            continue
        window.append(request)
        held += sum(
            picture.width * picture.height * BYTES_PER_PIXEL for picture in request.rendered.images
        )
        if len(window) >= rows or held >= WINDOW_BYTES:
            yield window
            window, held = [], 0
    if window:
        yield window
