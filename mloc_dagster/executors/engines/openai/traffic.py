"""What an endpoint is sent at a time and in a minute, from all threads of a process together.

Requests are sent by one thread with an event loop of its own: so shards and calls share
connections, places and the minute's allowance.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import Future
from contextlib import asynccontextmanager
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter


class LoopThread:
    """An event loop in a thread of its own; starts it when it is first needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: Thread | None = None

    def submit[T](self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Runs a coroutine there; cancelling the future cancels it."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = Thread(
                    target=self._loop.run_forever, name="mloc-endpoint", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancels what runs there, and ends the thread."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_others(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for each in others:
        each.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


class Places:
    """How many requests may be in flight; those that somebody waits for go before rows.

    Belongs to the thread of one event loop.

    Args:
        count: How many.

    Attributes:
        busy_s: Grows by the time that passes, divided among the requests in flight: between a
            request's start and its end it has grown by that request's share.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}
        self._since = time.monotonic()
        self.busy_s = 0.0

    @asynccontextmanager
    async def taken(self, *, urgent: bool) -> AsyncGenerator[None]:
        """Has a place in the `with` block."""
        if self._free:
            self.tick()
            self._free -= 1
        else:
            await self._wait(self._waiting[urgent])
        try:
            yield
        finally:
            self._leave()

    def tick(self) -> float:
        """Returns `busy_s` as it is now."""
        now = time.monotonic()
        if in_flight := self._count - self._free:
            self.busy_s += (now - self._since) / in_flight
        self._since = now
        return self.busy_s

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        mine = asyncio.get_running_loop().create_future()
        queue.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # it had just been given the place
                self._leave()
            raise

    def _leave(self) -> None:
        self.tick()
        for queue in self._waiting[True], self._waiting[False]:
            while queue:
                next_one = queue.popleft()
                if not next_one.done():
                    next_one.set_result(None)
                    return
        self._free += 1


class Rates:
    """The minute's allowance of requests and tokens.

    Args:
        requests: A minute; None is no limit.
        tokens: A minute; None is no limit.
    """

    def __init__(self, requests: int | None, tokens: int | None) -> None:
        self._requests = _limiter(requests)
        self._tokens = _limiter(tokens)

    async def wait(self, tokens: int) -> None:
        """Returns when a request may be sent.

        Args:
            tokens: How many it asks for; one that alone exceeds the allowance takes all of it.
        """
        if self._tokens is not None:
            await self._tokens.acquire(min(tokens, self._tokens.max_rate))
        if self._requests is not None:
            await self._requests.acquire()


def _limiter(a_minute: int | None) -> AsyncLimiter | None:
    if a_minute is None:
        return None
    from aiolimiter import AsyncLimiter

    return AsyncLimiter(a_minute)
