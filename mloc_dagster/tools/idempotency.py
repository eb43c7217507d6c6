"""The key of the call that is being made: the same one if the call is made again."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

HEADER = "Idempotency-Key"
META = "mloc/idempotency-key"
"""Its name in the `_meta` of calls of MCP servers."""

_KEY: ContextVar[str] = ContextVar("idempotency_key", default="")


def idempotency_key() -> str:
    """Returns the key of the call of a tool that is being made; empty where no agent makes it.

    A call that is made again, after its worker died, has the same key. Letters, digits and `/_.-~%`
    are in it: it can be a header, a primary key or a line in a file.
    """
    return _KEY.get()


@contextmanager
def calling(key: str) -> Generator[None]:
    """Gives the calls in the block a key."""
    token = _KEY.set(key)
    try:
        yield
    finally:
        _KEY.reset(token)
