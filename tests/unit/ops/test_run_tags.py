"""What the tags of a run say about its tasks."""

from __future__ import annotations

import pytest

from mloc_dagster.ops import (
    NODES_TAG,
    TASK_TYPES_TAG,
    TEMPLATE_TAG,
    WORKFLOW_TAG,
    may_be_alive,
    run_labels,
    run_tasks,
    template_tags,
    this_process,
    workflow_of,
)

LABELS = {"team": "a & b", "empty": "", "sum": "1=1"}


def test_tasks_and_labels_are_those_of_the_template() -> None:
    nodes = [
        ("draft", "echo", ()),
        ("rate", "inference", ("draft",)),
        ("all", "echo", ("draft", "rate")),
    ]
    tags = template_tags("graph", nodes, owner="team-a", labels=LABELS)
    assert run_labels(tags) == LABELS
    found = run_tasks("graph", tags, "w")
    assert [(each.node, each.task_type, each.depends_on) for each in found] == nodes
    assert [each.task_id for each in found] == ["w-draft", "w-rate", "w-all"]
    # Dagster's pages leave out what begins with ".dagster/".
    shown = {tag: value for tag, value in tags.items() if not tag.startswith(".dagster/")}
    assert shown == {"mloc/template": "graph", "mloc/owner": "team-a"}


def test_of_one_task_the_id_is_the_workflows_and_what_is_empty_is_no_tag() -> None:
    tags = template_tags("one", [("one", "echo", ())], owner="", labels={})
    assert set(tags) == {TEMPLATE_TAG, NODES_TAG, TASK_TYPES_TAG}
    assert [each.task_id for each in run_tasks("one", tags, "w")] == ["w"]


def test_runs_of_earlier_versions_have_tasks_without_types() -> None:
    (task,) = run_tasks("one", {NODES_TAG: "one"}, "w")
    assert (task.task_type, task.depends_on) == ("", ())
    now = template_tags("one", [("one", "echo", ())], owner="", labels={})
    assert (task,) == run_tasks("one", now, "w")


@pytest.mark.parametrize(
    ("tags", "workflow"),
    [
        ({}, "run"),
        ({WORKFLOW_TAG: "named"}, "named"),
        ({"dagster/root_run_id": "root"}, "run"),
        ({"dagster/root_run_id": "root", "dagster/is_resume_retry": "true"}, "root"),
    ],
)
def test_which_workflow_a_run_works_on(tags: dict[str, str], workflow: str) -> None:
    assert workflow_of("run", tags) == workflow


def test_a_process_is_alive_unless_that_can_be_told() -> None:
    host, pid, started, namespace = this_process().split(":")
    assert may_be_alive(this_process())
    assert not may_be_alive(f"{host}:{pid}:1:{namespace}")
    assert not may_be_alive(f"{host}:{2**22 + 1}:{started}:{namespace}")
    assert may_be_alive(f"elsewhere:{pid}:1:{namespace}")
    assert may_be_alive(f"{host}:{pid}:1:another")
    assert may_be_alive(f"{host}:{pid}:1")  # as earlier versions wrote it
