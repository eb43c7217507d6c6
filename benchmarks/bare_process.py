"""A bare engine in a child process: it answers a JSON line on its input with one on its output."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

_MARK = '{"bare":'


class BareProcess:
    """A script in a child process.

    Args:
        command: The script and its arguments.
        environment: Of the child.

    Attributes:
        started: What it said of its start.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, *command],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.started = self._answer()

    def ask(self, question: Mapping[str, object]) -> dict[str, Any]:
        """Returns the answer to a question."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(question) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._child.terminate()
        self._child.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        for line in self._child.stdout:
            if line.startswith(_MARK):
                return json.loads(line)["bare"]
        raise SystemExit("the bare engine ended early")


def say(figures: dict[str, Any]) -> None:
    """Answers, in the child."""
    print(json.dumps({"bare": figures}), flush=True)
