"""The in-process event bus: whoever runs in this process may listen, for as long as it likes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from mloc_dagster.events.model import TaskEvent

Listener = Callable[[TaskEvent], None]

_listeners: tuple[Listener, ...] = ()
_lock = threading.Lock()


def publish(event: TaskEvent) -> None:
    """Hands `event` to every current listener, in the caller's thread."""
    for listener in _listeners:
        listener(event)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Calls `listener` for each event published while the context is open."""
    global _listeners
    with _lock:
        _listeners = (*_listeners, listener)
    try:
        yield
    finally:
        with _lock:
            _listeners = tuple(each for each in _listeners if each is not listener)
