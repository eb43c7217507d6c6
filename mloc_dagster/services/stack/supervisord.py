"""supervisord, which outlives a full disk: `python -m … -c CONFIG`.

Its own log handlers raise when a line cannot be written, and then nothing is looked after any more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from supervisor import loggers
from supervisor.supervisord import main


class LossyFileHandler(loggers.RotatingFileHandler):
    """Drops what cannot be written, and goes on with what can."""

    def emit(self, record: loggers.LogRecord) -> None:
        """Writes a record, or loses it."""
        if self.stream.name == os.devnull:
            self._renew()
        try:
            super().emit(record)
        except (OSError, ValueError):  # while it rotates the file, of which it looks at the size
            self._renew()

    def handleError(self) -> None:  # noqa: N802 (supervisor's name)
        """Is called while what went wrong is handled; saying so would go to the same disk."""
        self._renew()

    def _renew(self) -> None:
        """Opens the file again: what a stream could not write it would try to write for ever."""
        with suppress(OSError):
            self.stream.close()
        try:
            self.stream = Path(self.baseFilename).open("ab")  # noqa: SIM115 (it stays open)
        except OSError:
            self.stream = Path(os.devnull).open("ab")  # noqa: SIM115


if __name__ == "__main__":
    loggers.RotatingFileHandler = LossyFileHandler
    main()
