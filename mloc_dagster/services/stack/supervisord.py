"""supervisord, which forks components and outlives a full disk: `python -m … -c CONFIG`.

Its own log handlers raise when a line cannot be written, and then nothing is looked after any more.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from supervisor import loggers, process, supervisord
from supervisor.options import ServerOptions

from mloc_dagster.services.stack import forks


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


class Component(process.Subprocess):
    """A supervised process; what it shares with others is loaded before it starts."""

    def spawn(self) -> int | None:
        """Starts it; returns its pid."""
        config: Any = self.config  # it has no types
        if forks.is_fork(shlex.split(config.command)):
            try:
                forks.load()
            except Exception as error:  # noqa: BLE001 (a component says better what is wrong)
                config.options.logger.warn(f"components share nothing: {error!r}")
        return super().spawn()


class Options(ServerOptions):
    """supervisord's options, among which is how a program is executed."""

    def execve(self, filename: str, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """Carries out a program in this fork; one of Python's has its modules already."""
        if forks.is_fork(argv):
            forks.become(argv, env)
        super().execve(filename, argv, env)


if __name__ == "__main__":
    loggers.RotatingFileHandler = LossyFileHandler
    process.Subprocess = Component
    supervisord.ServerOptions = Options
    supervisord.main()
