"""What is heard of a shard while it runs, through Dagster."""

from __future__ import annotations

import dagster as dg
import pytest

from mloc_dagster.events import TaskEvent, listening
from mloc_dagster.local_run import run_template
from mloc_dagster.settings import settings
from tests.e2e.queued_runs import echo_template

pytestmark = pytest.mark.e2e


def progress(events: list[TaskEvent], attempt: int) -> list[tuple[int, int]]:
    """Returns the rows that were there and those that ended, by event."""
    return [
        (each.payload.resumed, each.payload.rows)
        for each in events
        if each.type == "TASK_PROGRESS" and each.attempt == attempt
    ]


def test_rows_that_were_there_are_told_before_the_first_new_one(
    instance: dg.DagsterInstance,
) -> None:
    heard: list[TaskEvent] = []
    with listening(heard.append):
        outcome = run_template(echo_template("goes-on", "fail_rate: 0.4, seed: 3"), instance)
    assert outcome.succeeded
    assert progress(heard, attempt=2) == [(1, 0), (0, 1)]


def test_a_row_is_told_when_it_ends_and_not_with_the_next(instance: dg.DagsterInstance) -> None:
    heard: list[TaskEvent] = []
    with listening(heard.append):
        run_template(echo_template("each", "delay_s: 0.4"), instance)
    assert progress(heard, attempt=1) == [(0, 1)] * 4


def test_a_promise_that_will_not_be_kept_is_in_the_runs_log(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLOC_RUN_NOTE_INTERVAL_S", "0")
    settings.cache_clear()
    compiled = echo_template("late", "delay_s: 0.3", "slo: {seconds: 0.1}")
    outcome = run_template(compiled, instance)
    notes = [
        entry.dagster_event.engine_event_data.metadata
        for entry in instance.all_logs(outcome.run_id)
        if entry.dagster_event is not None and entry.dagster_event.is_engine_event
    ]
    late_s = [each["slo_late_s"].value for each in notes if "rows_total" in each]
    assert len(late_s) == 4
    assert all(isinstance(each, float) and each > 0 for each in late_s)
