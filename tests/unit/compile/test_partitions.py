"""`spec.partitions`: what is refused where, and a template with the partition of one run."""

from __future__ import annotations

from typing import Any

import pytest

from mloc_dagster.compile import (
    compile_document,
    compile_text,
    fill_partition,
    parse_documents,
    with_partition,
)
from mloc_dagster.errors import InputError
from mloc_dagster.schema import ColumnPartitions, TimePartitions

TEMPLATE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {{name: t}}
spec:
  partitions: {partitions}
  data: {data}
"""
LIST = '{type: list, items: ["about ${partition_key}"]}'
DATASET = '{type: dataset, url: "https://x.invalid/rows.jsonl", column: text}'


def findings(partitions: str, data: str = LIST) -> list[str]:
    text = TEMPLATE.format(partitions=partitions, data=data)
    return [str(each) for each in compile_text(text, "t.yaml")[1]]


@pytest.mark.parametrize(
    ("partitions", "finding"),
    [
        ("{type: dayly}", "t.yaml:5:22: spec.partitions.type: unknown type 'dayly'; did you mean"),
        ("{type: daily}", "t.yaml:5:3: spec.partitions.start_date: 'start_date' is required"),
        (
            "{type: daily, start_date: 2026-1-1}",
            "t.yaml:5:41: spec.partitions.start_date: '2026-1-1' is not of the form 2026-01-31",
        ),
        (
            "{type: hourly, start_date: 2026-01-01}",
            "t.yaml:5:42: spec.partitions.start_date: '2026-01-01' is not of the form"
            " 2026-01-31-00:00",
        ),
        (
            "{type: monthly, start_date: 2026-02-01, end_date: 2026-01-01}",
            "t.yaml:5:15: spec.partitions: end_date 2026-01-01 does not come after 2026-02-01",
        ),
        (
            "{type: weekly, start_date: 2026-01-01, timezone: Europe/Berln}",
            "spec.partitions.timezone: unknown timezone 'Europe/Berln'; did you mean",
        ),
        (
            "{type: static, partition_keys: [no, de]}",
            "t.yaml:5:47: spec.partitions.partition_keys[0]: expected text, got no, which YAML",
        ),
        ("{type: static, partition_keys: [a, a]}", "the key 'a' stands there twice"),
        ("{type: static, partition_keys: []}", "partition_keys: expected at least one key"),
        ("{type: static, partition_keys: ['a...b']}", "partition_keys[0]: 'a...b' is no key"),
        (
            "{type: column, column: lang, name: langs, partition_keys: [a]}",
            "spec.partitions: name is that of partitions without partition_keys",
        ),
        (
            "{type: column, column: lang}",
            "t.yaml:5:38: spec.partitions.column: selects rows of a dataset, and no task",
        ),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(partitions: str, finding: str) -> None:
    (found,) = findings(partitions)
    assert finding in found


@pytest.mark.parametrize(
    ("partitions", "data"),
    [
        ("{type: daily, start_date: 2026-01-01, timezone: Europe/Berlin, end_offset: 1}", LIST),
        ("{type: hourly, start_date: '2026-01-01-00:00'}", LIST),
        ("{type: dynamic, name: documents}", LIST),
        ("{type: column, column: lang, partition_keys: [de, en]}", DATASET),
    ],
)
def test_a_template_with_partitions_may_name_the_one_of_a_run(partitions: str, data: str) -> None:
    assert findings(partitions, data) == []


def test_without_partitions_the_message_says_how_to_have_some() -> None:
    (found,) = findings("null")
    assert found.startswith("t.yaml:6:30: spec.data.items[0]: ${partition_key} is the partition")
    assert "say spec.partitions" in found


def test_stages_have_the_partitions_of_their_template() -> None:
    text = TEMPLATE.format(partitions="{type: dynamic, name: d}", data=LIST)
    stages = "  stages: [{name: a, spec: {partitions: {type: dynamic, name: d}}}]\n"
    found = [str(each) for each in compile_text(text + stages, "t.yaml")[1]]
    assert "spec.stages[0].spec.partitions: 'partitions' stands in the template's own" in found[0]


def filled(partitions: str, data: str, key: str) -> dict[str, Any]:
    text = TEMPLATE.format(partitions=partitions, data=data)
    compiled = compile_document(with_partition(parse_documents(text, "t.yaml")[0], key))
    assert compiled.partition == key
    assert compiled.partitions is not None  # which one is computed takes nothing away from them
    return compiled.tasks[0].task.spec.model_dump()["data"]


def test_a_day_stands_in_every_text_that_names_it() -> None:
    data = '{type: list, items: ["on ${partition_key}", "costs $${partition_key}"]}'
    daily = "{type: daily, start_date: 2026-01-01}"
    assert filled(daily, data, "2026-01-05")["items"] == (
        "on 2026-01-05",
        "costs $${partition_key}",
    )


@pytest.mark.parametrize("given", ["{}", "{source: news}"])
def test_the_partition_of_a_column_selects_rows_beside_what_was_selected(given: str) -> None:
    data = DATASET.replace("}", f", only: {given}}}")
    column = "{type: column, column: lang, partition_keys: [de, en]}"
    only = filled(column, data, "de")["only"]
    assert only == ({} if given == "{}" else {"source": "news"}) | {"lang": "de"}


def test_every_stage_with_a_dataset_of_its_own_reads_the_rows_of_the_partition() -> None:
    mapping = {
        "apiVersion": "mloc/v1",
        "kind": "EchoTask",
        "metadata": {"name": "t"},
        "spec": {
            "partitions": {"type": "column", "column": "lang"},
            "taskType": "echo",
            "graph": {
                "nodes": [
                    {"name": "a", "spec": {"data": {"type": "dataset", "url": "./a.jsonl"}}},
                    {"name": "b", "spec": {"data": {"type": "list", "items": ["x"]}}},
                    {"name": "c", "spec": {"data": {"dataset_name": "./c.jsonl"}}},
                ]
            },
        },
    }
    once = fill_partition(mapping, "de")
    nodes: Any = once["spec"]["graph"]["nodes"]  # type: ignore[index, call-overload]
    assert [each["spec"]["data"].get("only") for each in nodes] == [
        {"lang": "de"},
        None,
        {"lang": "de"},
    ]
    assert fill_partition(once, "de") == once  # what is resumed is filled in again


def test_a_run_without_a_partition_cannot_read_the_rows_of_one() -> None:
    text = TEMPLATE.format(partitions="{type: column, column: lang}", data=DATASET)
    with pytest.raises(InputError, match="reads the rows of one partition, and this run has none"):
        fill_partition(parse_documents(text, "t.yaml")[0].mapping, None)


def test_partitions_are_typed() -> None:
    text = TEMPLATE.format(partitions="{type: daily, start_date: 2026-01-01}", data=LIST)
    (daily,), _ = compile_text(text, "t.yaml")
    assert isinstance(daily.partitions, TimePartitions)
    column = TEMPLATE.format(partitions="{type: column, column: lang}", data=DATASET)
    (found,), _ = compile_text(column, "t.yaml")
    assert isinstance(found.partitions, ColumnPartitions)
    assert found.partitions.partition_keys is None
