"""Templates that were run and are not in the library: Dagster defines them all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mloc_dagster import recent_templates
from mloc_dagster.compile import CompiledTemplate, compile_file, compile_mapping
from mloc_dagster.definitions import defs
from mloc_dagster.library import library_file
from mloc_dagster.recent_templates import recent_names, remember_template
from mloc_dagster.settings import settings


def template(name: str, item: str = "a", **spec: Any) -> CompiledTemplate:
    return compile_mapping(
        {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": name},
            "spec": {"data": {"type": "list", "items": [item]}, **spec},
        }
    )


def repository() -> dg.RepositoryDefinition:
    return defs().get_repository_def()


def test_a_template_of_ones_own_has_job_group_and_lineage_once_it_was_run(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')
    data = {"type": "dataset", "url": str(rows), "column": "text"}
    assert not repository().has_job("my_own")
    remember_template(template("my-own", data=data, schedule={"cron": "0 * * * *"}))
    found = repository()
    assert found.has_job("my_own")
    assert not [each.name for each in found.schedule_defs if "my_own" in each.name]
    node = found.asset_graph.get(dg.AssetKey(["my-own", "responses"]))
    assert node.group_name == "my_own"
    (parent,) = node.parent_keys
    assert parent.path[-1] == "rows.jsonl"


def test_it_is_as_it_was_run_last() -> None:
    before = recent_names()
    remember_template(template("changed", checks={"max_empty_fraction": 0.1}))
    first = recent_names()
    remember_template(template("changed", "b"))
    remember_template(template("changed", "b"))
    assert len(first) == len(recent_names()) == 1
    assert len({before, first, recent_names()}) == 3


def test_a_file_of_the_library_is_there_already() -> None:
    (echo,) = compile_file(library_file("core/echo"))
    remember_template(echo)
    assert recent_names() == ()
    # One of ones own that is called so does not take its place.
    remember_template(template("echo", "mine"))
    assert repository().get_job("echo").tags["mloc/owner"] == "mloc"


def test_what_came_over_the_api_is_left_to_its_own_location(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remember_template(template("from-elsewhere"), submitted=True)
    assert recent_names() == ()
    assert repository().has_job("from_elsewhere")
    monkeypatch.setenv("MLOC_STACK", "/home/of/a/stack")
    assert not repository().has_job("from_elsewhere")


def test_only_the_last_ones_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent_templates, "MOST_TEMPLATES", 3)
    for number in range(5):
        remember_template(template(f"t{number}"))
    assert [each.partition("@")[0] for each in recent_names()] == ["t2", "t3", "t4"]


def test_one_that_cannot_be_defined_takes_no_other_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # The one task of `x` and the job of `x__task` want the same name in a repository.
    for name in ("x", "x__task", "fine"):
        remember_template(template(name))
    (broken,) = (settings().home / "recent" / "run").glob("fine@*")
    broken.with_name("gone@0000000000000000.json").write_text('{"apiVersion": "mloc/v1"}')
    found = repository()
    assert found.has_job("fine")
    assert found.has_job("x__task")
    assert not found.has_job("x")
    assert caplog.text.count("left out") == 2


def test_its_literal_secrets_lie_with_the_results() -> None:
    headers = {"Authorization": "Bearer planted"}
    destination = {"type": "http", "url": "https://there/hook", "headers": headers}
    remember_template(template("delivered", output={"destination": destination}))
    (file,) = (settings().home / "recent").rglob("*.json")
    assert "planted" not in file.read_text()
    assert repository().has_job("delivered")


def test_a_home_that_cannot_be_written_to_keeps_no_run_from_running(
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings().home.parent.mkdir(parents=True, exist_ok=True)
    settings().home.write_text("a file")
    remember_template(template("unkept"))
    assert "will not know the template" in caplog.text
