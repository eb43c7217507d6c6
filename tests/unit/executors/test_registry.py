"""Task types are found by entry point, ours and anyone's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mloc_dagster.compile import compile_mapping
from mloc_dagster.errors import TemplateError, TerminalError, UnknownNameError
from mloc_dagster.executors.echo import EchoExecutor
from mloc_dagster.executors.task_start import task_executor
from mloc_dagster.plugins import load_registered
from mloc_dagster.schema import find_task_type, task_types, template_json_schema

SHOUT = '''
from mloc_dagster.executors import echo as ours
from mloc_dagster.schema.base import Block
from mloc_dagster.schema.task import RowSpec
from mloc_dagster.schema.task_type import TaskType

class Shout(Block):
    marks: int = 1

class ShoutSpec(RowSpec):
    """Says it louder."""
    block_name = "shout"
    shout: Shout = Shout()

class ShoutExecutor:
    pass

class Node(Block):  # the schema of a template has one of that name, too
    deep: bool = False

class EchoSpec(RowSpec):
    """Says it twice."""
    node: Node = Node()

TWICE = TaskType(name="twice", spec=EchoSpec, executor=ShoutExecutor)
LOUD = TaskType(name="loud", spec=ours.EchoSpec, executor=ShoutExecutor)
SHOUT = TaskType(name="shout", spec=ShoutSpec, executor=ShoutExecutor, kinds=("ShoutTask",))
'''


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, in which a distribution can be laid down."""
    monkeypatch.syspath_prepend(tmp_path)
    task_executor.cache_clear()
    load_registered.cache_clear()
    yield tmp_path
    task_executor.cache_clear()
    load_registered.cache_clear()
    sys.modules.pop("shouting_plugin", None)


def lay_down(folder: Path, name: str, entry: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[mloc_dagster.task_types]\n{entry}\n")


def template(task_type: str | None = None, kind: str = "EchoTask", **spec: Any) -> dict[str, Any]:
    named = {} if task_type is None else {"taskType": task_type}
    return {
        "apiVersion": "mloc/v1",
        "kind": kind,
        "metadata": {"name": "loud"},
        "spec": {**named, "data": {"type": "list", "items": ["a"]}, **spec},
    }


def findings(document: dict[str, Any]) -> str:
    with pytest.raises(TemplateError) as failed:
        compile_mapping(document)
    return "\n".join(str(each) for each in failed.value.diagnostics)


def test_our_own_task_types_come_in_by_the_public_door() -> None:
    assert isinstance(task_executor("echo"), EchoExecutor)
    assert task_executor("echo") is task_executor("echo")


def test_an_unknown_task_type_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task type 'ecoh'; did you mean 'echo'\?"):
        task_executor("ecoh")


def test_a_task_type_of_another_distribution_is_used_like_ours(plug_ins: Path) -> None:
    (plug_ins / "shouting_plugin.py").write_text(SHOUT)
    lay_down(plug_ins, "mloc-shouting", "shout = shouting_plugin:SHOUT")
    assert type(task_executor("shout")).__name__ == "ShoutExecutor"
    spec = compile_mapping(template(kind="ShoutTask", shout={"marks": 3})).tasks[0].task.spec
    assert spec.model_dump()["shout"] == {"marks": 3}
    assert "unknown key 'mark'; did you mean 'marks'?" in findings(
        template(kind="ShoutTask", shout={"mark": 3})
    )
    schema = template_json_schema()
    assert "ShoutTask" in schema["properties"]["kind"]["enum"]
    assert schema["$defs"]["ShoutSpec"]["description"] == "Says it louder."


def test_classes_of_two_distributions_may_have_the_same_name(plug_ins: Path) -> None:
    (plug_ins / "shouting_plugin.py").write_text(SHOUT)
    lay_down(plug_ins, "mloc-shouting", "twice = shouting_plugin:TWICE")
    check = Draft202012Validator(template_json_schema())
    assert list(check.iter_errors(template("echo", echo={"delay_s": 1}))) == []
    assert list(check.iter_errors(template("twice", node={"deep": True}))) == []
    assert list(check.iter_errors(template("twice", echo={"delay_s": 1}))) != []


def test_a_plug_in_that_cannot_be_imported_is_named_where_it_is_used(plug_ins: Path) -> None:
    lay_down(plug_ins, "mloc-broken", "broken = nowhere_at_all:Broken")
    assert "mloc-broken 1.2 (nowhere_at_all:Broken)" in findings(template("broken"))
    with pytest.raises(TerminalError, match=r"mloc-broken 1\.2 \(nowhere_at_all:Broken\)"):
        task_executor("broken")
    assert isinstance(task_executor("echo"), EchoExecutor)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("loud = shouting_plugin:SHOUT", "calls itself 'shout'"),
        ("loud = shouting_plugin:ShoutExecutor", "expected a mloc_dagster.schema.task_type"),
        ("loud = shouting_plugin:LOUD", "has the spec of 'echo': derive a class from EchoSpec"),
    ],
)
def test_what_is_no_descriptor_of_its_name_is_refused(
    plug_ins: Path, entry: str, said: str
) -> None:
    (plug_ins / "shouting_plugin.py").write_text(SHOUT)
    lay_down(plug_ins, "mloc-shouting", entry)
    with pytest.raises(TerminalError, match=said):
        find_task_type("loud")


def test_the_distributions_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are hundreds, and a template asks for each of its tasks."""
    known = task_types()

    def read_again(**_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr("importlib.metadata.entry_points", read_again)
    assert task_types() == known


def test_two_distributions_may_not_claim_one_name(plug_ins: Path) -> None:
    lay_down(plug_ins, "mloc-one", "twice = one:One")
    lay_down(plug_ins, "mloc-two", "twice = two:Two")
    with pytest.raises(TerminalError, match=r"registered twice: .*mloc-.* and .*mloc-"):
        task_executor("twice")
