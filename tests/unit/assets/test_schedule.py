"""When the schedule of a template runs by itself."""

from __future__ import annotations

from datetime import UTC, datetime

import dagster as dg
import pytest

from mloc_dagster.assets.placement import Placement
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


DAILY = {"type": "daily", "start_date": "2026-01-01"}


@pytest.mark.parametrize(
    ("own", "of_the_project", "asked"),
    [
        (None, dg.DailyPartitionsDefinition(start_date="2026-01-01"), ["2026-01-03"]),
        (None, dg.StaticPartitionsDefinition(["de", "en"]), ["de", "en"]),
        (DAILY, None, ["2026-01-03"]),
    ],
)
def test_with_partitions_it_asks_for_the_day_that_is_over_or_for_all(
    own: dict[str, str] | None, of_the_project: dg.PartitionsDefinition | None, asked: list[str]
) -> None:
    compiled = compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": "daily"},
            "spec": {
                "taskType": "echo",
                "data": {"type": "list", "items": ["a"]},
                "schedule": {"cron": "0 6 * * *"},
                "partitions": own,
            },
        }
    )
    place = Placement(partitions_def=of_the_project)
    built = template_definitions(compiled, placement=place)
    (schedule,) = built.schedules
    definitions = dg.Definitions(assets=built.assets, jobs=[built.job], schedules=[schedule])
    with (
        dg.instance_for_test() as instance,
        dg.build_schedule_context(
            instance=instance,
            scheduled_execution_time=datetime(2026, 1, 4, 6, tzinfo=UTC),
            repository_def=definitions.get_repository_def(),
        ) as context,
    ):
        requests = schedule.evaluate_tick(context).run_requests or []
    assert [each.partition_key for each in requests] == asked
