"""Which of our errors Dagster should retry."""

import dagster as dg

from mloc_dagster.errors import MlocError, TaskCancelled
from mloc_dagster.redaction import redact_urls
from mloc_dagster.schema import Retries


def as_dagster(error: MlocError) -> dg.Failure:
    """Returns the failure that ends the step, with our message and no automatic retry."""
    _hide_credentials(error)
    return dg.Failure(
        description=str(error),
        metadata={"error_type": type(error).__name__},
        allow_retries=False,
    )


def _hide_credentials(error: BaseException) -> None:
    """Masks addresses in an error and in those behind it, which Dagster prints with it."""
    _mask(error)
    while (cause := error.__cause__ or error.__context__) is not None:
        _mask(cause)
        if redact_urls(str(cause)) != str(cause):  # it makes its text of something else
            error.__cause__ = error.__context__ = None
            return
        error = cause


def _mask(error: BaseException) -> None:
    error.args = tuple(redact_urls(each) if isinstance(each, str) else each for each in error.args)


def retry_or_fail(error: Exception, attempt: int, retries: Retries) -> Exception:
    """Returns what to raise after a failed attempt at a shard.

    Args:
        error: What the attempt raised.
        attempt: Its number, from 1.
        retries: The task's policy.

    Returns:
        A `RetryRequested` with the linear delay while attempts are left and a retry may help
        (any error that is not ours may be transient), else a `Failure`.
    """
    _hide_credentials(error)
    if isinstance(error, TaskCancelled):
        return dg.Failure(description=str(error) or "cancelled", allow_retries=False)
    if isinstance(error, MlocError) and not error.retryable:
        return as_dagster(error)
    if attempt <= retries.max:
        return dg.RetryRequested(max_retries=retries.max, seconds_to_wait=retries.wait_s(attempt))
    return dg.Failure(
        description=redact_urls(f"attempt {attempt} of {retries.max + 1} failed: {error}"),
        metadata={"error_type": type(error).__name__},
        allow_retries=False,
    )


def step_error(event: dg.DagsterEvent) -> str:
    """Returns why a step failed in the words of whoever raised it, without Dagster around it."""
    failure = event.step_failure_data
    given = failure.user_failure_data
    if given is not None and given.description:
        return given.description
    error = failure.error
    while error is not None and error.cause is not None:
        error = error.cause
    return (event.message or "") if error is None else error.message.strip()
