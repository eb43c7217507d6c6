"""A template of many: one copy of its tasks for each combination of values."""

from __future__ import annotations

import pytest

from mloc_dagster.compile import (
    CompiledTask,
    Document,
    compile_mapping,
    parse_axis,
    parse_documents,
    sweep,
)
from mloc_dagster.errors import InputError, TemplateError

ONE = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: one, owner: me, labels: {team: a}}
spec:
  taskType: echo
  schedule: {cron: "0 3 * * *"}
  data: {type: list, items: [a]}
"""
STAGES = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: two}
spec:
  taskType: echo
  echo: {delay_s: 0}
  graph:
    nodes:
      - {name: first, spec: {data: {type: list, items: [a, "$${first.result.kept}"]}}}
      - name: second
        dependsOn: [first]
        spec: {data: {type: upstream, node: first, text: "{output} of ${first.result.ok}"}}
      - name: third
        dependsOn: [first, second]
        spec:
          data:
            type: graph_template
            template:
              name: two_column_briefing
              columns:
                - {label: one, expr: first.result.items}
                - {label: two, expr: second.result.items}
"""


def document(text: str) -> Document:
    (found,) = parse_documents(text, "t.yaml")
    return found


def tasks(text: str, *axes: str) -> dict[str, CompiledTask]:
    made = sweep(document(text), [parse_axis(each) for each in axes])
    return {each.task.name: each for each in compile_mapping(made.document).tasks}


def test_of_a_template_of_one_task_nodes_are_named_after_the_values() -> None:
    found = tasks(ONE, "spec.echo.delay_s=0,0.5", "spec.echo.seed=1,2")
    assert list(found) == [
        "delay_s-0-seed-1",
        "delay_s-0-seed-2",
        "delay_s-0_5-seed-1",
        "delay_s-0_5-seed-2",
    ]
    assert found["delay_s-0_5-seed-1"].mapping["echo"] == {"delay_s": 0.5, "seed": 1}


def test_the_template_keeps_its_labels_and_has_a_name_of_its_own() -> None:
    made = compile_mapping(sweep(document(ONE), [parse_axis("spec.echo.seed=1,2")]).document)
    assert (made.metadata.name, made.metadata.owner) == ("one-sweep", "me")
    assert made.metadata.labels == {"team": "a"}
    assert made.schedule is None


def test_stages_read_the_results_of_their_own_combination() -> None:
    made = sweep(document(STAGES), [parse_axis("spec.echo.delay_s=0,1")])
    assert [(each.origin, each.values["spec.echo.delay_s"]) for each in made.tasks] == [
        (origin, value) for value in ("0", "1") for origin in ("first", "second", "third")
    ]
    found = {each.task.name: each for each in compile_mapping(made.document).tasks}
    second = found["second-delay_s-1"].mapping["data"]
    assert second == {
        "type": "upstream",
        "node": "first-delay_s-1",
        "text": "{output} of ${first-delay_s-1.result.ok}",
    }
    third = found["third-delay_s-1"]
    assert set(third.task.depends_on) == {"first-delay_s-1", "second-delay_s-1"}
    assert [str(each) for each in third.references] == [
        "first-delay_s-1.result.items",
        "second-delay_s-1.result.items",
    ]
    kept = found["first-delay_s-0"].mapping["data"]
    assert kept == {"type": "list", "items": ["a", "$${first.result.kept}"]}


def test_what_a_value_makes_wrong_is_told_with_its_path() -> None:
    with pytest.raises(TemplateError, match=r"spec.echo.delay_s: expected a number, got 'hot'"):
        tasks(ONE, "spec.echo.delay_s=0,hot")
    with pytest.raises(TemplateError, match="did you mean 'delay_s'"):
        tasks(ONE, "spec.echo.delay=0,1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("spec.echo.seed", "expected PATH=VALUE"),
        ("=1,2", "expected PATH=VALUE"),
        ("spec.echo.seed=", "at least one value"),
        ("spec.echo.seed=1,1", "stands there twice"),
        ("spec.echo.seed=[1", "no values in YAML"),
    ],
)
def test_what_is_no_axis_is_told(given: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_axis(given)


def test_a_path_stands_once() -> None:
    with pytest.raises(InputError, match=r"--grid spec.echo.seed: twice"):
        tasks(ONE, "spec.echo.seed=1,2", "spec.echo.seed=3,4")
