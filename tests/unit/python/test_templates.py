from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mloc_dagster.data import write_rows
from mloc_dagster.errors import InputError, TemplateError
from mloc_dagster.python import template, validate
from mloc_dagster.python.templates import Template, one_template
from mloc_dagster.schema import DatasetData, RowSpec

TEXT = """\
apiVersion: mloc/v1
kind: EchoTask
metadata: {name: hello}
spec:
  data: {type: list, items: [one]}
"""
MAPPING: dict[str, Any] = {
    "apiVersion": "mloc/v1",
    "kind": "EchoTask",
    "metadata": {"name": "hello"},
    "spec": {"data": {"type": "list", "items": ("one",)}},
}


class Builder:
    def to_template(self) -> Mapping[str, Any]:
        return MAPPING


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "hello.yaml"
    path.write_text(TEXT)
    return path


def spec_of(given: Template, **options: Any) -> RowSpec:
    rows = write_rows(options.pop("data", None))
    compiled = one_template(given, options.pop("set", None), rows)
    spec = compiled.tasks[0].task.spec
    assert isinstance(spec, RowSpec)
    return spec


def test_all_that_stands_for_a_template_is_the_same(file: Path) -> None:
    forms: list[Template] = [file, str(file), TEXT, MAPPING, Builder()]
    specs = [spec_of(each) for each in forms]
    assert all(each == specs[0] for each in specs)
    assert one_template("echo", None, None).metadata.name == "echo"  # of the library


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ecko", "unknown template 'ecko'; did you mean 'echo'?"),
        ("there/is/none.yaml", "there/is/none.yaml: no such file"),
        (7, "a template is a path, a name of the library, YAML, a mapping, or has a method"),
        ({**MAPPING, "spec": {"data": object()}}, "template.spec.data is a object: a template"),
        (f"{TEXT}---\n{TEXT}", "holds 2 templates ('hello', 'hello'), and one is run at a time"),
        (TEXT.replace("items", "itens"), "template:5:22: spec.data.itens: unknown key 'itens'"),
    ],
)
def test_what_is_no_template_is_said(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=None) as caught:
        one_template(given, None, None)
    assert said in str(caught.value)


def test_values_are_set_by_path(file: Path) -> None:
    changes = {"spec.echo.delay_s": 0.5, "spec.data.items": ["a", "null"]}
    spec = spec_of(file, set=changes)
    assert spec.model_dump()["echo"]["delay_s"] == 0.5
    assert spec.model_dump()["data"]["items"] == ("a", "null")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sspec.x": 1}, "set sspec.x: a path starts at the document; did you mean 'spec'?"),
        ({"spec.ecko.delay_s": 1}, "set spec.ecko.delay_s: spec.ecko: unknown key 'ecko'"),
        ({"spec.echo.delay_s": "x"}, "set spec.echo.delay_s: spec.echo.delay_s: expected a number"),
        ({"spec.echo.delay_s": object()}, "set spec.echo.delay_s is a object"),
    ],
)
def test_what_cannot_be_set_is_said(file: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        one_template(file, changes, None)
    assert str(caught.value).startswith(said)


def test_given_rows_keep_what_the_template_makes_of_them() -> None:
    data = {"type": "dataset", "url": "openai/gsm8k", "name": "main", "split": "test[:9]"}
    mapping = template("echo", data={**data, "prompt": "{question}!", "keep": ["answer"]})
    spec = spec_of(mapping, data=[{"question": "why", "answer": "so"}])
    assert isinstance(spec.data, DatasetData)
    assert (spec.data.prompt, spec.data.keep, spec.data.split) == (
        "{question}!",
        ("answer",),
        "train",
    )
    assert spec.data.name is None
    assert Path(spec.data.url).name == "data.jsonl"


def test_a_column_that_is_not_there_is_told_where_the_template_names_it(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    data = "data: {type: dataset, url: openai/gsm8k, column: qestion}"
    path.write_text(TEXT.replace("data: {type: list, items: [one]}", data))
    with pytest.raises(TemplateError) as caught:
        spec_of(path, data=[{"question": "why"}])
    assert str(caught.value).startswith(
        f"{path}:5:52: spec.data.column: data.jsonl has no column 'qestion'; did you mean"
    )


def test_a_template_is_built_from_keywords() -> None:
    built = template("inference", model="tiny-chat", data={"type": "list", "items": ["hi"]})
    assert built["metadata"] == {"name": "inference"}
    assert spec_of(built).model_dump()["model"]["source"]["type"] == "builtin"
    with pytest.raises(InputError, match="did you mean 'inference'"):
        template("inferense")


def test_validate_returns_findings_with_their_places(file: Path) -> None:
    assert validate(file) == ()
    file.write_text(TEXT.replace("items", "itens"))
    (finding, *_) = validate(file)
    assert (finding.file, finding.line, finding.severity) == (str(file), 5, "error")
    file.write_text(TEXT.replace("items: [one]", "items: [one], seed: 3"))
    (warning,) = validate(file)
    assert (warning.severity, warning.path) == ("warning", "spec.data.seed")
    (missing,) = validate(MAPPING, set={"spec.data": {"type": "dataset", "url": "./no.jsonl"}})
    assert "no.jsonl" in missing.message
