"""Telling a breakdown of vLLM's engine from the error of a request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class BrokenDown(Exception):
    """The engine broke down; says why."""


@contextmanager
def noticing_breakdowns() -> Iterator[None]:
    """Runs what concerns the engine as a whole.

    Raises:
        BrokenDown: Whatever goes wrong.
    """
    try:
        yield
    except Exception as error:
        raise BrokenDown(cause_of(error)) from error


def is_dead(error: Exception) -> bool:
    """Tells whether vLLM's engine was found dead: its process has ended."""
    return type(error).__name__ == "EngineDeadError"


def cause_of(error: Exception) -> str:
    """Returns an error as one line, with its class."""
    return f"{type(error).__name__}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """Returns what an error says as one line; never empty."""
    return " ".join(str(error).split()) or type(error).__name__
