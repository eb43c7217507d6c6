"""Blocking work in threads that nobody has to wait for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable


async def in_thread[T](work: Callable[[], T]) -> T:
    """Does work in a thread of its own.

    Unlike those of `asyncio.to_thread` it is left to itself when the caller is cancelled: neither a
    pool nor the end of the process waits for a tool that hangs.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def finish(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # pyright: ignore[reportArgumentType]

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = context.run(work)
        except BaseException as error:  # noqa: BLE001 - the caller's, whatever it is
            failure = error
            if isinstance(error, StopIteration):  # which no future takes
                failure = RuntimeError("StopIteration")
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name="mloc tool", daemon=True).start()
    return await done
