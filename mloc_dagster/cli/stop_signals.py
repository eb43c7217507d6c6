"""Signals that end a command which otherwise stays."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignals:
    """Ctrl-C, SIGTERM and a closed terminal, while the block runs. Works in the main thread only.

    Attributes:
        on_second: Called, once, when a second one comes.
    """

    def __init__(self) -> None:
        self.on_second: Callable[[], None] | None = None
        self._came = threading.Event()

    @property
    def received(self) -> bool:
        """Whether one came."""
        return self._came.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Returns whether one came, at the latest after `timeout_s`."""
        return self._came.wait(timeout_s)

    def __enter__(self) -> Self:
        self._before = {each: signal.signal(each, self._handle) for each in _NUMBERS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._came.is_set():
            self._came.set()
        elif self.on_second is not None:
            hurry, self.on_second = self.on_second, None
            hurry()
