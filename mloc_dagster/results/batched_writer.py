"""Writing what comes bit by bit in batches: few enough files, and nothing waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class BatchedWriter[ItemT]:
    """Collects items and writes them in batches; safe to use from threads.

    Leaving the block writes what is left, whatever ended it: nothing is lost to an error or an
    interrupt elsewhere.

    Args:
        write: Takes a batch, in the order of arrival. Where it raises, the items wait on, and
            come again with the next batch.
        name: Of the thread that writes in time.
        most: Items that may wait.
        interval_s: Seconds that an item may wait, also when none follows it.
    """

    def __init__(
        self, write: Callable[[list[ItemT]], None], name: str, *, most: int, interval_s: float
    ) -> None:
        self._write = write
        self._most = most
        self._interval_s = interval_s
        self._items: list[ItemT] = []
        self._due_s = 0.0
        self._closing = False
        self._timer_failure: Exception | None = None
        self._changed = threading.Condition()  # guards all of the above
        self._writing = threading.Lock()  # one batch at a time; items may still come in
        self._timer = threading.Thread(target=self._flush_in_time, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.flush()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            self._timer.join()

    def add(self, item: ItemT) -> None:
        """Takes an item; raises what an earlier write in the background met."""
        with self._changed:
            if self._timer_failure is not None:
                failure, self._timer_failure = self._timer_failure, None
                raise failure
            if not self._items:
                self._due_s = time.monotonic() + self._interval_s
                self._changed.notify_all()
            self._items.append(item)
            full = len(self._items) >= self._most
        if full:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. After a failure the items wait on, and the next flush takes them."""
        with self._writing:
            with self._changed:
                items, self._items = self._items, []
            if not items:
                return
            try:
                self._write(items)
            except BaseException:
                with self._changed:
                    self._items = items + self._items
                raise

    def _flush_in_time(self) -> None:
        while self._wait_until_due():
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 - the writer's own thread raises it
                with self._changed:
                    self._timer_failure = error
                    self._due_s = time.monotonic() + self._interval_s

    def _wait_until_due(self) -> bool:
        with self._changed:
            while not self._closing:
                if not self._items:
                    self._changed.wait()
                    continue
                remaining_s = self._due_s - time.monotonic()
                if remaining_s <= 0:
                    return True
                self._changed.wait(remaining_s)
            return False
