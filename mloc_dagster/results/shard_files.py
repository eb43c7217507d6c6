"""Writing a shard's rows as they finish.

A shard's folder `shards/NNNN/` holds part files, each with some rows in order of place. Its name
says what is inside, and when: `part-<first place>-<last place>-<attempt>-<began>-<written>-
<unique>-c<crc32>.jsonl`, the times in milliseconds since 1970. It never changes once written:
equal names mean equal rows. `part_files` reads them, `spans` the times.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import msgspec

from mloc_dagster.planning.shards import Shard
from mloc_dagster.results.part_files import FinishedRows, finished_rows, read_rows, read_shard
from mloc_dagster.results.part_list import part_name
from mloc_dagster.results.rows import OutputRow
from mloc_dagster.results.store import Folder

__all__ = ["FinishedRows", "ShardWriter", "finished_rows", "read_rows", "read_shard"]


class ShardWriter:
    """Collects finished rows and writes them in small atomic files; safe to use from threads.

    Leaving the block writes what is left, whatever ended it: finished rows are never lost to an
    error or an interrupt elsewhere.

    Args:
        folder: The task's folder.
        shard: The shard that the rows belong to.
        attempt: Which attempt writes, from 1.
        flush_rows: Rows that may wait.
        flush_interval_s: Seconds that a row may wait, also when none follows it.
        began: When the attempt began, for the time that the task takes; unknown by default.
        clock: Seconds since any moment; the time of day may jump while rows are computed.
    """

    def __init__(
        self,
        folder: Folder,
        shard: Shard,
        attempt: int,
        *,
        flush_rows: int,
        flush_interval_s: float,
        began: datetime | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._shard = shard
        self._attempt = attempt
        self._flush_rows = flush_rows
        self._interval_s = flush_interval_s
        self._began = began
        self._clock, self._opened_s = clock, clock()
        self._encoder = msgspec.json.Encoder()
        self._rows: list[tuple[int, bytes]] = []
        self._due_s = 0.0
        self._closing = False
        self._timer_failure: Exception | None = None
        self._changed = threading.Condition()  # guards all of the above
        self._writing = threading.Lock()  # one part at a time; rows may still come in
        self._timer = threading.Thread(
            target=self._flush_in_time, name=f"flush-{shard.key}", daemon=True
        )

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

    def write(self, row: OutputRow) -> None:
        """Takes a finished row; raises what an earlier write in the background met.

        Raises:
            ValueError: If the row is not of this shard.
        """
        place = row.index if row.place < 0 else row.place
        if not self._shard.start <= place < self._shard.stop:
            raise ValueError(
                f"row {row.index} is not in shard {self._shard.key}, "
                f"which holds {self._shard.start} to {self._shard.stop - 1}"
            )
        line = self._encoder.encode(row)
        with self._changed:
            if self._timer_failure is not None:
                failure, self._timer_failure = self._timer_failure, None
                raise failure
            if not self._rows:
                self._due_s = time.monotonic() + self._interval_s
                self._changed.notify_all()
            self._rows.append((place, line))
            full = len(self._rows) >= self._flush_rows
        if full:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. After a failure the rows wait on, and the next flush takes them."""
        with self._writing:
            with self._changed:
                rows, self._rows = self._rows, []
            if not rows:
                return
            try:
                self._write_part(rows)
            except BaseException:
                with self._changed:
                    self._rows = rows + self._rows
                raise

    def _write_part(self, rows: list[tuple[int, bytes]]) -> None:
        rows.sort(key=lambda row: row[0])
        span = None
        if self._began is not None:
            written = self._began + timedelta(seconds=self._clock() - self._opened_s)
            span = (_ms(self._began), _ms(written))
        data = b"\n".join([*(line for _, line in rows), b""])
        first, last, unique = rows[0][0], rows[-1][0], secrets.token_hex(4)
        name = part_name(self._shard, first, last, self._attempt, unique, span, data)
        self._folder.write_bytes(name, data)

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
                if not self._rows:
                    self._changed.wait()
                    continue
                remaining_s = self._due_s - time.monotonic()
                if remaining_s <= 0:
                    return True
                self._changed.wait(remaining_s)
            return False


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
