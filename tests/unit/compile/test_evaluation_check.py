"""What an evaluation cannot measure is refused before anything runs."""

from __future__ import annotations

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import TemplateError

HEAD = """apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  model: {source: {type: builtin, identifier: tiny-chat}}
  inference: {n: 2}
  data: %s
  evaluation: %s
"""
DATASET = "{type: dataset, url: acme/x}"


def compiled(evaluation: str, data: str = DATASET) -> CompiledTemplate:
    return compile_document(parse_documents(HEAD % (data, evaluation), "t.yaml")[0])


@pytest.mark.parametrize(
    ("evaluation", "place", "message"),
    [
        (
            "{metrics: [exact_matc], reference: a}",
            "26",
            "unknown metric 'exact_matc'; did you mean",
        ),
        ("{metrics: [{type: f}], reference: a}", "33", "unknown metric 'f'"),
        ("{metrics: [f1]}", "15", "'f1' compares with the right answer: give reference"),
        ("{metrics: [regex], reference: a}", "15", "'regex' needs a pattern: {type: regex, "),
        ("{metrics: [{type: regex}]}", "26", "'regex' needs a pattern"),
        ("{metrics: [{type: regex, pattern: '('}]}", "26", "pattern '(' cannot be read"),
        ("{metrics: [{type: f1, scale: 2}], reference: a}", "26", "'f1' has no option 'scale'"),
        ("{metrics: [f1, {type: f1}], reference: a}", "15", "two metrics are called 'f1'"),
        (
            "{metrics: [{type: f1, pass_at: [3]}], reference: a}",
            "46",
            "pass@3 needs 3 answers to a row: inference.n is 2",
        ),
        ("{metrics: [f1], reference: a, gate: f1 >}", "51", "expected a number or 'before'"),
        ("{metrics: [f1], reference: a, gate: f > 1}", "51", "'f' is not measured"),
        (
            "{metrics: [f1], reference: a, gate: f1 > before}",
            "51",
            "'before' stands in the gate of",
        ),
        (
            "{metrics: [{type: json_valid, json_schema: {type: strin}}]}",
            "58",
            "this is no JSON Schema: $.type: 'strin' is not valid",
        ),
        ("{metrics: []}", "15", "expected at least one"),
        ("{metrics: [f1], refrence: a}", "31", "unknown key 'refrence'; did you mean 'reference'?"),
    ],
)
def test_a_mistake_is_told_at_its_place(evaluation: str, place: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compiled(evaluation)
    found = [str(each) for each in caught.value.diagnostics]
    assert any(each.startswith(f"t.yaml:8:{place}: ") and message in each for each in found), found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "{type: dataset, url: acme/x, keep: [answer]}",
            "data.keep leaves 'anser' out; did you mean",
        ),
        ("{type: dataset, url: acme/x, keep: false}", "data.keep is false"),
        ("{type: list, items: [a]}", "rows of data.type 'list' have no columns"),
    ],
)
def test_rows_that_cannot_have_the_right_answer_are_told(data: str, message: str) -> None:
    with pytest.raises(TemplateError) as caught:
        compiled("{metrics: [f1], reference: anser}", data)
    (found,) = map(str, caught.value.diagnostics)
    assert found.startswith("t.yaml:8:42: spec.evaluation.reference: ")
    assert message in found


def test_what_can_be_measured_compiles() -> None:
    gate = "gate: numeric/pass@2 >= 0.5 and f1 > 0.1"
    metrics = "metrics: [f1, {type: numeric, pass_at: [2]}, json_valid]"
    assert compiled(f"{{reference: answers.text, {metrics}, {gate}}}")
    kept = "{type: dataset, url: acme/x, keep: [], id_column: key}"
    assert compiled("{metrics: [f1], reference: id}", kept)
    assert compiled("{metrics: [{type: number, scale: 10}]}", "{type: list, items: [a]}")


def test_vectors_are_not_scored() -> None:
    text = (HEAD % (DATASET, "{metrics: [json_valid]}")).replace("InferenceTask", "EmbeddingTask")
    with pytest.raises(TemplateError, match="scores texts, and this task leaves vectors"):
        compile_document(parse_documents(text.replace("  inference: {n: 2}\n", ""), "t.yaml")[0])


STAGES = """apiVersion: mloc/v1
kind: InferenceTask
metadata: {name: t}
spec:
  model: {source: {type: builtin, identifier: tiny-chat}}
  evaluation: %s
  stages:
    - {name: train, spec: {taskType: sft, data: {rows: [{text: x}]}}}
    - {name: ask, spec: {data: {type: dataset, url: acme/x}}}
"""


@pytest.mark.parametrize(
    ("block", "train", "ask"),
    [
        ("{data: {rows: [{text: x}]}, metrics: [loss]}", True, False),
        ("{reference: answer, metrics: [f1]}", False, True),
    ],
)
def test_a_templates_evaluation_is_that_of_the_stages_that_it_fits(
    block: str, train: bool, ask: bool
) -> None:
    tasks = compile_document(parse_documents(STAGES % block, "t.yaml")[0]).tasks
    given = [getattr(each.task.spec, "evaluation") is not None for each in tasks]  # noqa: B009
    assert given == [train, ask]
