"""The claim under which a run worker executes a run, for the executor in the same thread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from mloc_dagster.fleet.claim import Claim

_current: ContextVar[Claim | None] = ContextVar("run_claim", default=None)


def current_run_claim() -> Claim | None:
    """Returns the claim of this thread's run; None outside run workers."""
    return _current.get()


@contextmanager
def under_claim(claim: Claim) -> Generator[None]:
    """Makes `claim` the one of this thread's run."""
    token = _current.set(claim)
    try:
        yield
    finally:
        _current.reset(token)
