"""Submissions of all kinds while API, dispatcher, daemon, workers and Redis are killed at random.

The full version is `benchmarks/control_plane_chaos.py`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.control_plane_chaos import ENVIRONMENT, Report, run_chaos
from tests.e2e.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SUBMISSIONS = 120
SECONDS = 12.0
SEED = 6


@pytest.fixture(scope="module")
def report() -> Iterator[Report]:
    with tempfile.TemporaryDirectory(prefix="mloc-") as folder:
        options = {"workers": 2, "run_workers": 1, "api": True, "environment": ENVIRONMENT}
        Path(folder).chmod(0o755)
        with Stack(Path(folder) / "home", **options) as stack:
            yield run_chaos(stack, submissions=SUBMISSIONS, seconds=SECONDS, seed=SEED)


def test_each_ends_as_it_should_exactly_once(report: Report) -> None:
    assert report.wrong == []
    assert sum(report.answers.values()) == SUBMISSIONS
    assert set(report.states) == {"DONE", "DEAD", "CANCELLED"}


def test_something_was_killed_meanwhile(report: Report) -> None:
    assert sum(report.kills.values()) >= 3
