"""The library's folders: what ships, what is added, what a setting names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_dagster.cli import entry
from mloc_dagster.library import library_file, library_files
from mloc_dagster.settings import settings

MINE = """\
# Run it: mloc run mine.yaml
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: mine}
spec:
  taskType: echo
  data: {type: dataset, url: ./rows/a.jsonl, column: text}
"""


class Mloc:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        found = entry.run(arguments)
        out, err = self._capsys.readouterr()
        assert found == code, err
        return out, err


@pytest.fixture
def mloc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Mloc:
    for name in ("MLOC_TEMPLATES_DIR", "MLOC_TEMPLATES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLOC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text('{"text": "hi"}\n')
    (tmp_path / "mine.yaml").write_text(MINE)
    return Mloc(capsys)


def test_an_added_template_is_in_the_library_with_paths_that_hold(mloc: Mloc) -> None:
    out, err = mloc("templates", "add", "mine.yaml", "--as", "team/mine")
    assert err == "run it with `mloc run team/mine`\n"
    added = Path(out.strip())
    assert library_file("mine") == added
    assert next(iter(library_files())) == "team/mine"
    assert mloc("validate", str(added))[0].startswith("1 valid template")
    assert "url: ../../../rows/a.jsonl" in added.read_text()
    assert mloc("templates", "show", "team/mine")[0] == added.read_text()


def test_what_was_added_is_replaced_and_removed_only_when_that_is_said(mloc: Mloc) -> None:
    mloc("templates", "add", "mine.yaml")
    Path("mine.yaml").write_text(MINE.replace("text}", "text, split: train}"))
    assert "--replace" in mloc("templates", "add", "mine.yaml", code=2)[1]
    assert "split" not in library_file("mine").read_text()
    mloc("templates", "add", "mine.yaml", "--replace")
    assert "split" in library_file("mine").read_text()
    assert "did you mean 'mine'" in mloc("templates", "remove", "mina", code=2)[1]
    mloc("templates", "remove", "mine")
    assert "mine" not in library_files()
    assert "unknown added template" in mloc("templates", "remove", "core/echo", code=2)[1]


def test_what_is_wrong_is_not_added(mloc: Mloc) -> None:
    Path("mine.yaml").write_text(MINE.replace("taskType: echo", "taskType: ecco"))
    assert "mine.yaml:6:13: spec.taskType" in mloc("templates", "add", "mine.yaml", code=2)[1]
    Path("mine.yaml").write_text(MINE)
    for name in ("../mine", "a//b", "/mine", "-"):
        assert (
            "expected names between slashes"
            in (mloc("templates", "add", "mine.yaml", "--as", name, code=2)[1])
        )
    assert not Path("home/templates").exists()


def test_a_second_template_of_a_name_is_told(mloc: Mloc) -> None:
    Path("mine.yaml").write_text(MINE.replace("name: mine", "name: echo"))
    assert "core/echo has a template named 'echo', too" in mloc("templates", "add", "mine.yaml")[1]


def test_folders_of_the_path_come_first(mloc: Mloc, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two/core"):
        Path(folder).mkdir(parents=True)
    Path("one/mine.yaml").write_text(MINE)
    Path("two/core/echo.yaml").write_text(MINE)
    mloc("templates", "add", "mine.yaml")
    monkeypatch.setenv("MLOC_TEMPLATES_PATH", os.pathsep.join(("one", "", "two")))
    settings.cache_clear()
    assert list(library_files())[:2] == ["mine", "core/echo"]
    assert library_file("mine") == Path("one/mine.yaml")
    assert library_file("core/echo") == Path("two/core/echo.yaml")
    monkeypatch.setenv("MLOC_TEMPLATES_PATH", "three")
    settings.cache_clear()
    assert "MLOC_TEMPLATES_PATH has 'three'" in mloc("templates", "list", code=2)[1]
