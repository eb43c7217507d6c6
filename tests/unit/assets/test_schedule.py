"""When the schedule of a template runs by itself."""

from __future__ import annotations

import dagster as dg
import pytest

from mloc_dagster.assets.template_job import template_definitions
from mloc_dagster.compile import compile_mapping


def default_status(**schedule: object) -> dg.DefaultScheduleStatus:
    spec = {"taskType": "echo", "data": {"type": "list", "items": ["a"]}}
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "nightly"},
            "spec": {**spec, "schedule": {"cron": "0 6 * * *", **schedule}},
        }
    )
    (found,) = template_definitions(compiled).schedules
    assert found.name == "nightly_schedule"
    return found.default_status


def test_a_schedule_is_on_under_mloc_up_and_left_to_the_user_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLOC_STACK", raising=False)
    assert default_status() is dg.DefaultScheduleStatus.STOPPED
    monkeypatch.setenv("MLOC_STACK", "/home/of/a/stack")
    assert default_status() is dg.DefaultScheduleStatus.RUNNING
    assert default_status(enabled=False) is dg.DefaultScheduleStatus.STOPPED


def test_a_schedule_can_be_taken_out() -> None:
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "once"},
            "spec": {
                "taskType": "echo",
                "data": {"type": "list", "items": ["a"]},
                "schedule": None,
            },
        }
    )
    assert template_definitions(compiled).schedules == []
