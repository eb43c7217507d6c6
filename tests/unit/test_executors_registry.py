"""Task types are found by entry point, ours and anyone's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mloc_dagster.errors import TerminalError, UnknownNameError
from mloc_dagster.executors.echo import EchoExecutor
from mloc_dagster.executors.registry import task_executor, task_types


@pytest.fixture
def plug_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, in which a distribution can be laid down."""
    monkeypatch.syspath_prepend(tmp_path)
    task_executor.cache_clear()
    yield tmp_path
    task_executor.cache_clear()


def lay_down(folder: Path, name: str, entry: str) -> None:
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[mloc_dagster.task_types]\n{entry}\n")


def test_our_own_task_types_come_in_by_the_public_door() -> None:
    assert isinstance(task_executor("echo"), EchoExecutor)
    assert task_executor("echo") is task_executor("echo")


def test_an_unknown_task_type_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown task type 'ecoh'; did you mean 'echo'\?"):
        task_executor("ecoh")


def test_a_plug_in_of_another_distribution_is_found(plug_ins: Path) -> None:
    (plug_ins / "shouting_plugin.py").write_text("class Shouting:\n    pass\n")
    lay_down(plug_ins, "mloc-shouting", "shout = shouting_plugin:Shouting")
    assert type(task_executor("shout")).__name__ == "Shouting"
    sys.modules.pop("shouting_plugin")


def test_a_plug_in_that_cannot_be_imported_is_named(plug_ins: Path) -> None:
    lay_down(plug_ins, "mloc-broken", "broken = nowhere_at_all:Broken")
    with pytest.raises(TerminalError, match=r"mloc-broken 1\.2 \(nowhere_at_all:Broken\)"):
        task_executor("broken")


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
