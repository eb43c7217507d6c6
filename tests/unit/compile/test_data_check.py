"""Data that can give no rows, or other ones than meant, is refused before anything runs."""

from __future__ import annotations

import pytest

from mloc_dagster.compile.compiled import CompiledTemplate
from mloc_dagster.compile.compiler import compile_document
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.compile.references import resolve_task
from mloc_dagster.errors import TemplateError
from mloc_dagster.schema import GraphTemplateData

HEAD = "apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {name: t}\nspec:\n"
MODEL = "  model: {source: {type: builtin, identifier: tiny-chat}}\n"
STAGES = """  stages:
    - {name: draft, spec: {data: {type: list, items: [a]}}}
    - name: last
      spec:
        data: %s
"""


def compiled(spec: str, model: str = MODEL) -> CompiledTemplate:
    return compile_document(parse_documents(HEAD + model + spec, "t.yaml")[0])


def errors(spec: str, model: str = MODEL) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        compiled(spec, model)
    return [str(finding) for finding in caught.value.diagnostics]


@pytest.mark.parametrize(
    "split",
    [
        *("train[", "train[5]", "train[a:b]", "train[:150%]", "train[:10%](foo)", "", "train test"),
        *("train[1.5:3]", "train[:5%:]", "+train", "train++test", "train[:5]+", "train[::2]"),
        *("train[ :5]", "train[10:5]", "train[:-0%]"),
    ],
)
def test_a_split_that_gives_no_rows_is_refused_at_its_place(split: str) -> None:
    (error,) = errors(f"  data: {{type: dataset, url: acme/x, split: '{split}'}}\n")
    assert error.startswith(f"t.yaml:6:45: spec.data.split: split '{split}'")
    assert "expected a form such as 'train'" in error or "%" in split


def test_a_split_of_a_training_is_refused_too() -> None:
    data = "{dataset_name: acme/x, split: 'train[5]'}"
    text = f"  taskType: sft\n  data: {data}\n  evaluation: {{data: {data}}}\n"
    first, second = errors(text)
    assert "spec.data.split: split 'train[5]' cannot be read" in first
    assert "spec.evaluation.data.split: split 'train[5]' cannot be read" in second


@pytest.mark.parametrize("name", ["tiny-chta", "gpt2"])
def test_an_unknown_builtin_model_is_refused_with_the_nearest(name: str) -> None:
    model = f"  model: {{source: {{type: builtin, identifier: {name}}}}}\n"
    (error,) = errors("  data: {type: list, items: [a]}\n", model)
    assert error.startswith("t.yaml:5:")
    assert f"spec.model.source.identifier: unknown builtin model '{name}'" in error
    assert "'tiny-chat'" in error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{type: upstream, node: draft, text: '{outptu}'}", "did you mean 'output'?"),
        ("{type: upstream, node: draft, text: 'a } b'}", "a single '}' at character 2"),
        (
            "{type: graph_template, template: {text: '{A} {b}', columns: "
            "[{label: a, expr: draft.result.items}]}}",
            "no value for '{A}'; did you mean 'a'?",
        ),
        (
            "{type: graph_template, template: {text: 'x', columns: "
            "[{label: a, expr: draft.result.items}, {label: a, expr: draft.result.model}]}}",
            "the label 'a' is column 0's",
        ),
        (
            "{type: graph_template, template: {name: two_column_briefing, columns: "
            "[{label: a, expr: draft.result.items}, {label: a, expr: draft.result.model}]}}",
            "the label 'a' is column 0's",
        ),
    ],
)
def test_texts_of_later_stages_are_checked_before_the_first_runs(data: str, message: str) -> None:
    (error,) = errors(STAGES % data)
    assert error.startswith("t.yaml:10:")
    assert message in error


def test_braces_of_references_are_no_placeholders_and_answers_may_hold_any() -> None:
    text = "'{a} after ${draft.result.model}'"
    template = compiled(
        STAGES % f"{{type: graph_template, template: {{text: {text}, columns: "
        "[{label: a, expr: draft.result.items}]}}"
    )
    task = resolve_task(template.tasks[1], lambda _: "a {model} of {braces}")
    data = getattr(task.spec, "data")  # noqa: B009
    assert isinstance(data, GraphTemplateData)
    assert data.template.text == "{a} after a {{model}} of {{braces}}"


@pytest.mark.parametrize("field", ["name: main", "revision: v1"])
def test_what_only_a_hub_dataset_has_is_refused_beside_a_file(field: str) -> None:
    (error,) = errors(f"  data: {{type: dataset, url: ./x.jsonl, {field}}}\n")
    assert f"spec.data.{field.partition(':')[0]}: " in error
    assert "selects within a hub dataset, but url './x.jsonl' is a file; remove it" in error
    assert compiled(f"  data: {{type: dataset, url: acme/x, {field}}}\n").tasks
    assert compiled("  data: {type: dataset, url: ./x.jsonl, name: null}\n").tasks


def test_a_configuration_beside_a_file_to_train_on_is_refused() -> None:
    (error,) = errors("  taskType: sft\n  data: {dataset_name: x.csv, config_name: main}\n")
    assert "spec.data.config_name: config_name selects within a hub dataset" in error


@pytest.mark.parametrize("item", ["''", "'  '", "[{role: user, content: ''}]"])
def test_an_empty_prompt_is_refused_where_a_model_would_read_it(item: str) -> None:
    rows = f"  data: {{type: list, items: [a, {item}]}}\n"
    (error,) = errors(rows)
    assert "spec.data.items[1]: an empty prompt gives no answer" in error
    assert compiled("  taskType: echo\n" + rows, model="").tasks


def test_a_list_of_no_messages_is_no_row() -> None:
    rows = "  data: {type: list, items: [a, []]}\n"
    (error,) = errors("  taskType: echo\n" + rows, model="")
    assert "spec.data.items[1]: an empty list of chat messages" in error


def test_prompts_of_several_columns_are_read_before_anything_runs() -> None:
    data = "{type: dataset, url: acme/x, messages: [{role: user, content: 'json {'}]}"
    (error,) = errors(f"  data: {data}\n")
    assert error.startswith("t.yaml:6:71: spec.data.messages[0].content: ")
    assert "a single '{' at character 5; write '{{' for a brace" in error
    (error,) = errors("  data: {type: dataset, url: acme/x, prompt: 'x}'}\n")
    assert "a single '}' at character 1" in error
    both = "{type: dataset, url: acme/x, prompt: '{question}', column: question}"
    (error,) = errors(f"  data: {both}\n")
    assert "give one of column, prompt and messages; got column and prompt" in error
    assert compiled("  data: {type: dataset, url: acme/x, prompt: '{any column} {{'}\n")


def test_columns_of_rows_before_stand_in_a_text_and_others_do_not() -> None:
    rows = "{type: upstream, node: draft, text: '{prompt} {%s}'}"
    assert compiled(STAGES % (rows % "columns.answer"))
    (error,) = errors(STAGES % (rows % "answer"))
    assert "has no value for '{answer}'" in error


def test_what_comes_from_a_result_is_no_placeholder_of_a_prompt() -> None:
    data = "{type: dataset, url: q.jsonl, %s: %s}"
    text = "'{question} ${draft.result.items[0].output}'"
    for field, value in (("prompt", text), ("messages", f"[{{role: user, content: {text}}}]")):
        task = compiled(STAGES % (data % (field, value))).tasks[-1]
        resolved = resolve_task(task, lambda reference: "{x}").spec.data  # type: ignore[attr-defined]
        filled = resolved.prompt or resolved.messages[0].content
        assert filled == "{question} {{x}}"
