"""Ctrl-C and SIGTERM, noticed whatever signal handlers libraries put in place meanwhile.

Dagster replaces the handlers while it runs a job: a signal then interrupts the step that runs, or
the next one, and finished rows are written on the way out. What it cannot do is stop a wait
between two attempts, or hurry; a second signal does, and so does patience that runs out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_S = 15.0
"""A step gets this long to write its finished rows after the first signal."""


class Interrupts:
    """Notices signals while the block runs. Works in the main thread only.

    Args:
        on_first: Called from another thread when the first signal came.
        on_second: Called from another thread for the second one, or when patience has run out;
            expected to end the process with the exit code that it is given.
        patience_s: How long to wait before `on_second` is called anyway.

    Attributes:
        received: The first signal's number; None as long as there was none.
    """

    def __init__(
        self,
        on_first: Callable[[], None],
        on_second: Callable[[int], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.received: int | None = None
        self._on_first = on_first
        self._on_second = on_second
        self._patience_s = patience_s
        self._left = threading.Event()

    @property
    def exit_code(self) -> int:
        """What a process exits with that was ended by the signal: 130 or 143."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    def __enter__(self) -> Self:
        # The interpreter writes each signal's number here before any handler runs.
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._handlers_before = {each: signal.signal(each, _raise) for each in _SIGNALS}
        self._watcher = threading.Thread(target=self._watch, name="interrupts", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.write(self._write_fd, b"\0")
        self._watcher.join()
        os.close(self._write_fd)
        os.close(self._read_fd)

    def _watch(self) -> None:
        while True:
            for number in os.read(self._read_fd, 64):
                if number == 0:
                    return
                if number in _SIGNALS:
                    self._notice(number)

    def _notice(self, number: int) -> None:
        if self.received is not None:
            self._on_second(self.exit_code)
            return
        self.received = number
        threading.Thread(target=self._lose_patience, name="patience", daemon=True).start()
        self._on_first()

    def _lose_patience(self) -> None:
        if not self._left.wait(self._patience_s):
            self._on_second(self.exit_code)


def _raise(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
