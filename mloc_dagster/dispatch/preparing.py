"""Making runs beside the dispatcher's loop: building a template's job takes time for each stage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mloc_dagster.dispatch.fair_queue import FairQueue
from mloc_dagster.ledger.model import PlannedRun


class Preparing:
    """A thread that hands runs over, whichever owner's turn it is.

    It is one because Dagster composes the graphs of all threads on one stack.

    Args:
        hand_over: Makes a run and gives it to the fleet; twice is once.
    """

    def __init__(self, hand_over: Callable[[PlannedRun], None]) -> None:
        self._hand_over = hand_over
        self._lock = threading.Lock()
        self._queue: FairQueue[PlannedRun] = FairQueue()
        self._known: set[str] = set()
        self._ready: list[tuple[PlannedRun, Exception | None]] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="mloc-preparing")

    def add(self, planned: PlannedRun, owner: str) -> None:
        """Has a run made; one that is being made already stays where it is."""
        with self._lock:
            if planned.run_id in self._known:
                return
            self._known.add(planned.run_id)
            self._queue.add(planned, owner=owner, cost=len(planned.task_ids))
        self._pool.submit(self._next)

    def ready(self) -> list[tuple[PlannedRun, Exception | None]]:
        """Returns which runs have been made since the last call, or why one could not be."""
        with self._lock:
            found, self._ready = self._ready, []
            self._known -= {planned.run_id for planned, _ in found}
        return found

    def close(self) -> None:
        """Ends the thread after the run that it is making; the others are still in the ledger."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self) -> None:
        with self._lock:
            planned = self._queue.take()
        if planned is None:
            return
        failed: Exception | None = None
        try:
            self._hand_over(planned)
        except Exception as error:  # noqa: BLE001 (whoever looks for what is ready decides)
            failed = error
        with self._lock:
            self._ready.append((planned, failed))
