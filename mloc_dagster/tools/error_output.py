"""What a program that a tool started writes to its standard error."""

from __future__ import annotations

import os
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection

from mloc_dagster.redaction import redact
from mloc_dagster.tools.masking import masked

_KEPT_LINES = 20
_SHOWN_LINES = 3
_SHOWN_CHARACTERS = 600
"""Of what a program said before it ended, in an error's message; all of it is in the log."""

_READ_TIMEOUT_S = 5.0


class ErrorOutput:
    """What a program writes to its standard error: lines of a log, the last ones kept.

    Args:
        log: Takes the lines, from a thread of their own.
        prefix: Stands before each.
        secrets: Texts that no line may hold.
    """

    def __init__(self, log: Callable[[str], None], prefix: str, secrets: Collection[str]) -> None:
        reading, writing = os.pipe()
        self.file = open(writing, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - no path
        self._log = log
        self._prefix = prefix
        self._secrets = secrets
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._mark = uuid.uuid4().hex
        self._read = threading.Event()
        thread = threading.Thread(target=self._follow, args=(reading,), name="mloc mcp log")
        thread.daemon = True
        thread.start()

    def forget(self) -> None:
        """Leaves out of the last words what was said before."""
        self._last.clear()

    def last_words(self) -> str:
        """Returns the last that the program said; of a traceback the error."""
        # What was written before this line is read before it, too.
        self._read.clear()
        self.file.write(f"{self._mark}\n")
        self.file.flush()
        self._read.wait(_READ_TIMEOUT_S)
        told = [
            line
            for line in self._last
            if line.strip() and not line[0].isspace() and not line.startswith("Traceback (")
        ]
        return "; ".join(told[-_SHOWN_LINES:])[-_SHOWN_CHARACTERS:]

    def _follow(self, reading: int) -> None:
        with open(reading, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                said, marked, _ = line.rstrip().partition(self._mark)
                if said or not marked:
                    shown = masked(redact(said), self._secrets)
                    self._last.append(shown)
                    self._log(f"{self._prefix}{shown}")
                if marked:
                    self._read.set()
