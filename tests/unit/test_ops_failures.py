"""Which failures Dagster retries, and after how long."""

from __future__ import annotations

import dagster as dg
import pytest

from mloc_dagster.errors import DataError, TaskCancelled, TerminalError, TransientError
from mloc_dagster.ops.failures import as_dagster, retry_or_fail
from mloc_dagster.schema.resources import Retries


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
