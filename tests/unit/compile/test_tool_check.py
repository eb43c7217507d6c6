"""Tools that nobody registered, and what is missing for others, are told before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mloc_dagster.client import body_of_file
from mloc_dagster.compile import (
    Diagnostic,
    compile_file,
    compile_files,
    compile_text,
    look_for_tools,
)
from mloc_dagster.data import look_at_data
from mloc_dagster.errors import InputError
from mloc_dagster.local_run import check_runnable
from mloc_dagster.schema import tools_in
from tests.tooled_task import ITEM_LINE, install, template
from tests.unit.executors.test_registry import plug_ins

__all__ = ["plug_ins"]

AGENT = """\
apiVersion: mloc/v1
kind: AgentTask
metadata: {name: a}
spec:
  task: "?"
  model: {source: {identifier: scripted}, scripted: {turns: [{text: a}]}}
  agent:
    tools:
      - %s
"""


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("entry_point: calculatr", "unknown tool 'calculatr'; did you mean 'calculator'?"),
        ("{entry_point: my_tools.look}", "unknown tool 'my_tools.look'; did you mean"),
        ("entry_point: lookup", "the tool 'lookup' needs the option 'file'"),
        ("{entry_point: lookup, options: {fiel: a.json}}", "no option 'fiel'; did you mean 'file'"),
        ("{entry_point: my_tools.lookup, options: {most: x}}", "its option 'most': Input should"),
        ("{python: {}, options: {a: 1}}", "options are for an entry_point; python has fields"),
    ],
)
def test_functions_and_their_options(plug_ins: Path, item: str, said: str) -> None:
    """In the tools of any task type."""
    install(plug_ins)
    for text in (template(item), AGENT % item):
        _, (finding,) = compile_text(text, "t.yaml")
        line = ITEM_LINE if "Tooled" in text else 9
        assert (finding.line, said in finding.message) == (line, True), finding


def looked_for(item: str) -> list[Diagnostic]:
    compiled, findings = compile_text(AGENT % item, "t.yaml")
    assert findings == []
    return look_for_tools(compiled)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ("search: {provider: serper}", "needs the environment variable SERPER_API_KEY"),
        ("mcp: {command: [pyton3, -m, server]}", "'pyton3' is not on this machine; did you mean"),
    ],
)
def test_what_workers_may_have_is_a_warning_and_an_error_before_a_run_here(
    monkeypatch: pytest.MonkeyPatch, item: str, said: str
) -> None:
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    (found,) = looked_for(item)
    assert (found.severity, found.line, said in found.message) == ("warning", 9, True), found
    (compiled,), _ = compile_text(AGENT % item, "t.yaml")
    with pytest.raises(InputError, match=r"SERPER_API_KEY|did you mean"):
        check_runnable(compiled)


def test_what_is_there_needs_no_word() -> None:
    for item in ("entry_point: calculator", "mcp: {command: [python3]}", "python: {}"):
        assert looked_for(item) == []


def test_a_file_in_options_lies_relative_to_the_template(
    plug_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(plug_ins)
    folder = tmp_path / "templates"
    (folder / "de").mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({"a": "b"}))
    monkeypatch.chdir(tmp_path)
    file = folder / "t.yaml"
    file.write_text(AGENT % "{entry_point: lookup, options: {file: facts.json}}")
    (compiled,) = compile_file(file)
    ((_, tool),) = tools_in(compiled.tasks[0].task.spec)
    assert tool.options == {"file": str(folder / "facts.json")}
    assert sorted(body_of_file(file).files) == ["facts.json"]
    # Any other text is what it is, whatever lies beside the template.
    file.write_text(AGENT % "{entry_point: my_tools.lookup, options: {language: de}}")
    (compiled,) = compile_file(file)
    assert look_at_data([compiled]) == []
    ((_, tool),) = tools_in(compiled.tasks[0].task.spec)
    assert tool.options == {"language": "de"}
    assert body_of_file(file).files == {}


def test_a_file_in_options_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("{}")
    file = tmp_path / "t.yaml"
    file.write_text(AGENT % "{entry_point: lookup, options: {file: ./fact.json}}")
    compiled, _ = compile_files([file])
    (finding,) = look_at_data(compiled)
    assert finding.line == 9
    assert "./fact.json: no such file or folder" in finding.message
