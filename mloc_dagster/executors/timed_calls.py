"""Calls that may hang: each is waited for so long and no longer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any

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
