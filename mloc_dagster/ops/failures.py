"""Which of our errors Dagster should retry."""

import dagster as dg

from mloc_dagster.errors import MlocError, TaskCancelled
from mloc_dagster.schema.resources import Retries


def as_dagster(error: MlocError) -> dg.Failure:
    """Returns the failure that ends the step, with our message and no automatic retry."""
    return dg.Failure(
        description=str(error),
        metadata={"error_type": type(error).__name__},
        allow_retries=False,
    )


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
    if isinstance(error, TaskCancelled):
        return dg.Failure(description=str(error) or "cancelled", allow_retries=False)
    if isinstance(error, MlocError) and not error.retryable:
        return as_dagster(error)
    if attempt <= retries.max:
        return dg.RetryRequested(max_retries=retries.max, seconds_to_wait=retries.wait_s(attempt))
    return dg.Failure(
        description=f"attempt {attempt} of {retries.max + 1} failed: {error}",
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
