"""Which failures are worth another attempt, and when."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from mloc_dagster.client.errors import ApiAwayError

_backoff = wait_random_exponential(multiplier=0.25, max=5.0)


def retrying(repeatable: bool, attempts: int, pause: Callable[[float], None]) -> Retrying:
    """Returns what tries a request several times.

    Args:
        repeatable: Whether asking twice does no more than asking once.
        attempts: How often at most.
        pause: Waits so many seconds.
    """
    return Retrying(
        retry=retry_if_exception(lambda error: _may_retry(error, repeatable)),
        stop=stop_after_attempt(attempts),
        wait=_wait,
        sleep=pause,
        reraise=True,
    )


def async_retrying(
    repeatable: bool, attempts: int, pause: Callable[[float], Awaitable[None]]
) -> AsyncRetrying:
    """Returns the same for coroutines."""
    return AsyncRetrying(
        retry=retry_if_exception(lambda error: _may_retry(error, repeatable)),
        stop=stop_after_attempt(attempts),
        wait=_wait,
        sleep=pause,
        reraise=True,
    )


def _may_retry(error: BaseException, repeatable: bool) -> bool:
    return isinstance(error, ApiAwayError) and (repeatable or not error.perhaps_done)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.retry_after_s if isinstance(error, ApiAwayError) else None
    return _backoff(state) if asked is None else asked
