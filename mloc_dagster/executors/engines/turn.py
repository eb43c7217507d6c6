"""Whose turn it is where one thread at a time may compute: shards and calls share the time.

A *call* is computed for somebody who waits for it. It gets the turn between two steps of a shard,
not at the shard's end. While both have work, calls take `MLOC_INTERACTIVE_SHARE` of the time:
each side's seconds are divided by its share, and the side that has less of them goes on. A side
that was away brings no claims along.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mloc_dagster.errors import TaskCancelled
from mloc_dagster.settings import settings

SLICE_S = 0.05
"""A call computes at least that long before it gives way: changing threads costs up to 1 ms."""

LOOK_EVERY_S = 0.1
"""How often somebody is asked whether the task was cancelled."""

_LEAST_SHARE = 1e-9


@dataclass(eq=False, slots=True)
class Ticket:
    """A thread that computes, or waits for its turn.

    Attributes:
        urgent: It computes a call.
        serves: The engine whose calls all get served while this thread computes; None where it
            computes nothing but its own work.
        news: Set when the thread should look up: it has the turn, or something else has happened.
        away_s: Seconds that it has given to others since it had the turn first.
    """

    urgent: bool = False
    serves: object = None
    thread: int = field(default_factory=threading.get_ident)
    news: threading.Event = field(default_factory=threading.Event)
    away_s: float = 0.0
    paused: bool = False


class Turn:
    """A lock that calls get between two steps of whoever holds it.

    A thread that has the turn may take it again, as with `threading.RLock`.

    Args:
        share: Of the time, for calls; `MLOC_INTERACTIVE_SHARE` by default.
    """

    def __init__(self, share: float | None = None) -> None:
        self._share = share
        self._mutex = threading.Lock()
        self._holder: Ticket | None = None
        self._since = self._counted = 0.0
        self._waiting: list[Ticket] = []
        self._used = {True: 0.0, False: 0.0}

    @contextmanager
    def held(
        self, ticket: Ticket | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[Ticket]:
        """Has the turn in the `with` block.

        Raises:
            TaskCancelled: If `cancelled` says so while others have it.
        """
        ticket = Ticket() if ticket is None else ticket
        try:
            while not self.take(ticket, LOOK_EVERY_S):
                if cancelled():
                    raise TaskCancelled("stopped while another shard had the engine")
            yield ticket
        finally:
            self.leave(ticket)

    def take(self, ticket: Ticket, timeout_s: float | None = None) -> bool:
        """Waits for the turn, or for news; returns whether the thread has the turn.

        A ticket without it keeps its place among those that wait, until `leave`.
        """
        with self._mutex:
            if self._holder is not None and self._holder.thread == ticket.thread:
                return True
            if ticket not in self._waiting:
                self._arrive(ticket)
            if self._holder is None:
                self._hand_on()
            if self._holder is ticket:
                return True
        ticket.news.wait(timeout_s)
        ticket.news.clear()
        with self._mutex:
            return self._holder is ticket

    def leave(self, ticket: Ticket) -> None:
        """Hands the turn on, or waits for it no longer."""
        with self._mutex:
            if self._holder is ticket:
                self._count()
                self._hand_on()
            elif ticket in self._waiting:
                self._waiting.remove(ticket)

    def wanted(self, ticket: Ticket) -> bool:
        """Returns whether the thread that has the turn is to give way to another one now."""
        if not self._waiting:
            return False
        with self._mutex:
            return self._holder is ticket and self._is_wanted(ticket)

    def give_way(self, ticket: Ticket) -> None:
        """Lets others compute, if they are to, and returns when it is this thread's turn again."""
        if not self._waiting:
            return
        with self._mutex:
            if self._holder is not ticket or not self._is_wanted(ticket):
                return
            self._waiting.append(ticket)
            ticket.paused = True
            self._hand_on(pausing=ticket)
        began = time.monotonic()
        while not self.take(ticket):
            pass
        ticket.paused = False
        ticket.away_s += time.monotonic() - began

    def _is_wanted(self, ticket: Ticket) -> bool:
        self._count()
        long = time.monotonic() - self._since >= SLICE_S
        calls, shards = self._used[True], self._used[False]
        for each in self._waiting:
            served = each.serves is not None and each.serves is ticket.serves
            if not ticket.urgent:
                if each.urgent and not served and calls <= shards:
                    return True
            elif each.urgent:
                if long and not served:
                    return True
            elif served or (long and calls > shards):  # a shard that serves this call as well
                return True
        return False

    def _arrive(self, ticket: Ticket) -> None:
        self._count()
        present = [*self._waiting, *([] if self._holder is None else [self._holder])]
        if all(each.urgent is not ticket.urgent for each in present):
            self._used[ticket.urgent] = max(self._used.values())
        self._waiting.append(ticket)

    def _count(self) -> None:
        """Adds the holder's time to that of its side."""
        now = time.monotonic()
        if self._holder is not None:
            share = settings().interactive_share if self._share is None else self._share
            side = share if self._holder.urgent else max(1 - share, _LEAST_SHARE)
            self._used[self._holder.urgent] += (now - self._counted) / side
        self._counted = now

    def _hand_on(self, pausing: Ticket | None = None) -> None:
        self._holder = self._next(pausing)
        if self._holder is not None:
            self._waiting.remove(self._holder)
            self._since = self._counted = time.monotonic()
            self._holder.news.set()

    def _next(self, pausing: Ticket | None) -> Ticket | None:
        # In an engine that a pausing shard feeds nobody else may take a step.
        fed = [each.serves for each in self._waiting if each.paused and each.serves is not None]
        ready = [
            each
            for each in self._waiting
            if each is not pausing and (each.paused or each.serves not in fed)
        ]
        call = next((each for each in ready if each.urgent), None)
        shard = next((each for each in ready if not each.urgent), None)
        if call is None or shard is None:
            return call or shard or pausing
        return call if self._used[True] <= self._used[False] else shard
