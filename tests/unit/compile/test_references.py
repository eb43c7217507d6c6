from __future__ import annotations

import pytest

from mloc_dagster.compile.compiled import CompiledTask, Reference, parse_expression
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.compile.references import resolve_references, resolve_task
from mloc_dagster.errors import DataError, InputError, TemplateError
from mloc_dagster.net import LOCAL
from mloc_dagster.schema import InferenceSpec, ListData

GRAPH = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  model: {source: {identifier: x}}
  graph:
    nodes:
    - {name: a-1, spec: {data: {type: list, items: [x]}}}
    - {name: aside, spec: {data: {type: list, items: [x]}}}
    - name: train
      spec:
        taskType: sft
        data: {rows: [{text: x}]}
    - name: b
      dependsOn: [a-1, train]
      spec: %s
"""


def compile_b(spec: str) -> CompiledTask:
    (document,) = parse_documents(GRAPH % spec, "t.yaml")
    return compile_document(document).tasks[-1]


def error_of(spec: str) -> str:
    with pytest.raises(TemplateError) as caught:
        compile_b(spec)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.result.items[0].output", Reference("a", ("items", 0, "output"))),
        ("a-1.b_2.result.usage.num_requests", Reference("a-1.b_2", ("usage", "num_requests"))),
        ("a.result.items[*].output", Reference("a", ("items", "*", "output"))),
        ("a.result", Reference("a", ())),
    ],
)
def test_an_expression_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert parse_expression(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", "a", "a.items", ".result.x", "a.result.", "a.result[x]", "a.result.x[0"]
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        parse_expression(text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${a-1.result.itms}", "a-1.result has no field 'itms'; did you mean 'items'?"),
        ("${a-1.result.items.output}", "is a list: pick an item, such as a-1.result.items[0]"),
        ("${a-1.result.ok.x}", "a-1.result.ok is a single value and has no field 'x'"),
        ("${a-1.result.usage[0]}", "a-1.result.usage is no list"),
        ("${aside.result.ok}", "'aside' does not end before this task; name it in dependsOn"),
        ("${a-2.result.ok}", "no node is called 'a-2'; did you mean 'a-1'?"),
        ("${train.result.final_lora_path}", "did you mean 'final_model_path'?"),
        ("x ${a-1.result.items}", "is not a single value and cannot stand within text"),
        ("${a-1.result.items}", "expected text, got ${a-1.result.items}, which is a list"),
        ("${a-1.result.items[*].output}", "works in columns of a graph_template only"),
        ("${nothing}", "neither a reference such as"),
        ("${a-1.result.ok", "is not closed"),
    ],
)
def test_a_reference_that_cannot_resolve_is_an_error(value: str, message: str) -> None:
    text = f"{{data: {{type: list, items: [x]}}, inference: {{system_prompt: '{value}'}}}}"
    assert message in error_of(text)


def test_a_whole_reference_must_fit_its_field() -> None:
    text = "{data: {type: list, items: [x]}, inference: {max_tokens: '${a-1.result.%s}'}}"
    compile_b(text % "usage.num_requests")
    message = error_of(text % "items[0].output")
    assert "expected a whole number, got ${a-1.result.items[0].output}, which is text" in message


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("{label: l, expr: a-1.result.itms}", "did you mean 'items'?"),
        ("{label: l, expr: aside.result.items}", "does not end before this task"),
        ("{label: l, node: a-3, path: 'result.ok'}", "no node is called 'a-3'"),
        ("{label: l, expr: nonsense}", "is no reference"),
        ("{label: l}", "give either expr, or node and path"),
    ],
)
def test_columns_are_checked_like_references(column: str, message: str) -> None:
    text = "{data: {type: graph_template, template: {text: '{l}', columns: [%s]}}}"
    assert message in error_of(text % column)


def test_rows_can_only_be_taken_from_an_earlier_node_that_has_some() -> None:
    assert "is a training (sft)" in error_of("{data: {type: upstream, node: train}}")
    assert "did you mean 'a-1'?" in error_of("{data: {type: upstream, node: a-2}}")
    assert compile_b("{data: {type: upstream, node: a-1}}")


def test_a_task_is_resolved_with_the_values_and_types_of_its_references() -> None:
    task = compile_b(
        "{data: {type: list, items: ['Is ${a-1.result.items[0].output} worth $${5}?']},"
        " inference: {max_tokens: '${a-1.result.usage.num_requests}'}}"
    )
    result = {"items": [{"output": "it"}], "usage": {"num_requests": 7}}

    def lookup(reference: Reference) -> object:
        value: object = result
        for step in reference.path:
            value = value[step]  # type: ignore[index]
        return value

    spec = resolve_task(task, lookup).spec  # type: ignore[arg-type]
    assert isinstance(spec, InferenceSpec)
    assert isinstance(spec.data, ListData)
    assert spec.data.items == ("Is it worth ${5}?",)
    assert spec.inference.max_tokens == 7
    assert {str(each) for each in task.references} == {
        "a-1.result.items[0].output",
        "a-1.result.usage.num_requests",
    }


def test_a_value_that_does_not_fit_at_run_time_is_an_error() -> None:
    task = compile_b(
        "{data: {type: list, items: [x]},"
        " inference: {max_tokens: '${a-1.result.usage.num_requests}'}}"
    )
    with pytest.raises(TemplateError, match="expected at least 1, got 0"):
        resolve_task(task, lambda _: 0)


@pytest.mark.parametrize("value", [None, {"a": 1}, [1]])
def test_a_reference_within_text_never_becomes_nothing(value: object) -> None:
    with pytest.raises(DataError):
        resolve_references("x ${a.result.metrics.b}", lambda _: value)  # type: ignore[arg-type]


def test_a_missing_value_is_a_data_error() -> None:
    def lookup(reference: Reference) -> str:
        raise KeyError(reference.node)

    with pytest.raises(DataError, match=r"\$\{a\.result\.ok\} has no value"):
        resolve_references({"k": ["${a.result.ok}"]}, lookup)


def test_a_models_output_cannot_name_a_secret_where_variables_are_read() -> None:
    spec = {"output": {"destination": {"url": "http://x/${a.result.items[0].output}"}}}
    with pytest.raises(DataError, match="must not come from a result"):
        resolve_references(spec, lambda _: "${SECRET}")
    text = resolve_references({"data": {"items": ["${a.result.model}"]}}, lambda _: "${SECRET}")
    assert text == {"data": {"items": ["${SECRET}"]}}


def test_environment_references_stay_until_they_are_expanded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = resolve_references("Bearer ${MY_TOKEN}", lambda _: "no")
    assert text == "Bearer ${MY_TOKEN}"
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(InputError, match="MY_TOKEN is not set"):
        LOCAL.filled_in("Bearer ${MY_TOKEN}")
    monkeypatch.setenv("MY_TOKEN", "t0p")
    assert LOCAL.filled_in("Bearer ${MY_TOKEN}, $5") == "Bearer t0p, $5"
