"""Which failures Dagster retries, and after how long."""

from __future__ import annotations

import traceback

import dagster as dg
import pytest

from mloc_dagster.errors import DataError, TaskCancelled, TerminalError, TransientError
from mloc_dagster.ops.failures import as_dagster, retry_or_fail
from mloc_dagster.schema import Retries


def test_a_transient_failure_is_retried_with_linear_delay() -> None:
    retries = Retries(max=3, delay_s=50, max_delay_s=120)
    waits = []
    for attempt in (1, 2, 3):
        asked = retry_or_fail(TransientError("busy"), attempt, retries)
        assert isinstance(asked, dg.RetryRequested)
        waits.append(asked.seconds_to_wait)
    assert waits == [50, 100, 120]


def test_the_last_attempt_says_how_many_there_were() -> None:
    failure = retry_or_fail(TransientError("still busy"), 3, Retries(max=2))
    assert isinstance(failure, dg.Failure)
    assert failure.description == "attempt 3 of 3 failed: still busy"


@pytest.mark.parametrize("error", [TerminalError("no"), DataError("no"), TaskCancelled("no")])
def test_what_a_retry_cannot_cure_fails_at_once(error: Exception) -> None:
    failure = retry_or_fail(error, 1, Retries())
    assert isinstance(failure, dg.Failure)
    assert failure.description == "no"
    assert not failure.allow_retries


def test_a_failure_names_the_class_of_our_error() -> None:
    assert as_dagster(DataError("x")).metadata["error_type"].value == "DataError"


class _Quoting(Exception):
    """Makes its text of something else than its arguments, as some HTTP libraries' do."""

    def __str__(self) -> str:
        return "404 for https://bob:hush@host/x?sig=hush"


@pytest.mark.parametrize("cause", [OSError("no https://bob:hush@host/x?sig=hush"), _Quoting()])
def test_errors_behind_a_failure_show_no_credentials(cause: Exception) -> None:
    error = TransientError(f"https://bob:hush@host/x: {cause}")
    error.__cause__ = cause
    for failure in (
        as_dagster(error),
        retry_or_fail(error, 9, Retries(max=1)),
        retry_or_fail(cause, 9, Retries(max=1)),
    ):
        assert isinstance(failure, dg.Failure)
        assert "hush" not in str(failure.description)
    assert "hush" not in "".join(traceback.format_exception(error))
