"""A template's partitions as Dagster's, and the keys that a run may be asked for."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

import mloc
from mloc_dagster.assets import MlocTemplate, check_partition, template_definitions
from mloc_dagster.compile import CompiledTemplate, compile_mapping, fill_partition
from mloc_dagster.errors import InputError

DAILY = {"type": "daily", "start_date": "2026-01-01", "end_date": "2026-01-04"}
LANGUAGES = {"type": "column", "column": "lang", "partition_keys": ["de", "en"]}


def mapping(partitions: dict[str, Any] | None, **spec: Any) -> dict[str, Any]:
    data = {"type": "dataset", "url": "https://x.invalid/rows.jsonl", "column": "text"}
    given = {"taskType": "echo", "data": data, "partitions": partitions, **spec}
    return {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "answers"},
        "spec": given,
    }


def compiled(partitions: dict[str, Any] | None, key: str | None = None) -> CompiledTemplate:
    given = mapping(partitions)
    if key is not None:
        given = fill_partition(given, key)
    return compile_mapping(given, partition=key)


@pytest.mark.parametrize(
    ("partitions", "expected"),
    [
        (
            {"type": "hourly", "start_date": "2026-01-01-06:00", "minute_offset": 30},
            dg.HourlyPartitionsDefinition("2026-01-01-06:00", minute_offset=30, timezone="UTC"),
        ),
        (
            {"type": "daily", "start_date": "2026-01-01", "timezone": "Europe/Berlin"},
            dg.DailyPartitionsDefinition("2026-01-01", timezone="Europe/Berlin"),
        ),
        (
            {"type": "weekly", "start_date": "2026-01-01", "day_offset": 1, "hour_offset": 6},
            dg.WeeklyPartitionsDefinition(
                "2026-01-01", day_offset=1, hour_offset=6, timezone="UTC"
            ),
        ),
        (
            {"type": "monthly", "start_date": "2026-01-01", "end_offset": 1},
            dg.MonthlyPartitionsDefinition("2026-01-01", end_offset=1, timezone="UTC"),
        ),
        (
            {"type": "static", "partition_keys": ["b", "a"]},
            dg.StaticPartitionsDefinition(["b", "a"]),
        ),
        ({"type": "dynamic", "name": "books"}, dg.DynamicPartitionsDefinition(name="books")),
        (LANGUAGES, dg.StaticPartitionsDefinition(["de", "en"])),
        (
            {"type": "column", "column": "lang"},
            dg.DynamicPartitionsDefinition(name="answers_lang"),
        ),
        (
            {"type": "column", "column": "lang", "name": "langs"},
            dg.DynamicPartitionsDefinition(name="langs"),
        ),
        (None, None),
    ],
)
def test_they_are_dagsters_own(
    partitions: dict[str, Any] | None, expected: dg.PartitionsDefinition | None
) -> None:
    (in_library,) = template_definitions(compiled(partitions)).assets
    (in_project,) = mloc.mloc_assets(mapping(partitions))
    assert in_library.partitions_def == in_project.partitions_def == expected


def test_those_of_the_project_win(tmp_path: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"lang": "de", "text": "a"}\n{"lang": "en", "text": "b"}\n')
    given = mapping(LANGUAGES, data={"type": "dataset", "url": str(rows), "column": "text"})
    days = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-03")
    (asset,) = mloc.mloc_assets(given, partitions_def=days)
    assert asset.partitions_def == days
    with dg.instance_for_test() as instance:
        result = dg.materialize([asset], instance=instance, partition_key="2026-01-02")
    (done,) = result.asset_materializations_for_node("answers__task.export")
    assert done.partition == "2026-01-02"
    assert (
        done.metadata["dagster/row_count"].value == 2
    )  # of both languages: the template's own are gone


# Dagster's own, as it reads a `defs.yaml`.
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")
@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
@pytest.mark.parametrize("of_project", [None, {"type": "static", "partition_keys": ["x"]}])
def test_the_component_has_those_of_the_template_or_of_its_own(of_project: Any) -> None:
    attributes: dict[str, Any] = {"template": "core/partitioned", "partitions_def": of_project}
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=MlocTemplate,
            defs_yaml_contents={
                "type": "mloc_dagster.assets.component.MlocTemplate",
                "attributes": attributes,
            },
        )
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, definitions):
            assets = definitions.resolve_asset_graph().assets_defs
    (asset,) = (each for each in assets if each.is_executable)  # not the data set
    keys = ["de", "en", "fr"] if of_project is None else ["x"]
    assert asset.partitions_def == dg.StaticPartitionsDefinition(keys)


@pytest.mark.parametrize(
    ("partitions", "key", "message"),
    [
        (None, "de", "answers has no partitions, and cannot run the partition 'de'"),
        (LANGUAGES, None, "each value of the column 'lang': say which with --partition KEY"),
        (LANGUAGES, "dee", "answers has no partition 'dee'; did you mean 'de'?"),
        (LANGUAGES, "zh", "answers has no partition 'zh'; known: 'de', 'en'"),
        (DAILY, None, "a partition for each day: say which with --partition KEY.* from 2026-01-01"),
        (DAILY, "2026-01-04", "no partition '2026-01-04'; they go from 2026-01-01 to 2026-01-03"),
        (DAILY, "yesterday", "no partition 'yesterday'; they go from 2026-01-01 to 2026-01-03"),
        (DAILY, "2026-1-2", "no partition '2026-1-2'"),
        ({"type": "daily", "start_date": "2999-01-01"}, "2026-01-01", "none is over yet"),
        ({"type": "dynamic", "name": "books"}, None, "answers has partitions: say which with"),
    ],
)
def test_a_key_that_is_none_is_refused_with_those_there_are(
    partitions: dict[str, Any] | None, key: str | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_partition(compiled(partitions, key))


@pytest.mark.parametrize(
    ("partitions", "key"),
    [
        (None, None),
        (DAILY, "2026-01-03"),
        (LANGUAGES, "en"),
        ({"type": "column", "column": "lang"}, "never seen"),
    ],
)
def test_a_key_that_is_one_is_taken(partitions: dict[str, Any] | None, key: str | None) -> None:
    check_partition(compiled(partitions, key))
