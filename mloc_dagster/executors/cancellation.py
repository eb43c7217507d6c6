"""How a shard learns that it should stop, whoever runs it.

The fleet's workers set the question; ops ask it; in a plain Dagster process nobody has set one
and Dagster's own interrupts do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

_question: ContextVar[Callable[[], bool] | None] = ContextVar("cancel_requested", default=None)


def cancel_requested() -> bool:
    """Returns whether the shard of this thread was asked to stop."""
    question = _question.get()
    return False if question is None else question()


@contextmanager
def cancellable(question: Callable[[], bool]) -> Generator[None]:
    """Lets `cancel_requested` ask `question` in this thread while it is open."""
    token = _question.set(question)
    try:
        yield
    finally:
        _question.reset(token)
