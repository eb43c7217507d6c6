"""Missing files, splits and columns are told with their place before anything runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mloc_dagster.compile import compile_document, parse_documents
from mloc_dagster.data.look import look_at_data

HEAD = "apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {name: t}\nspec:\n"
MODEL = "  model: {source: {type: builtin, identifier: tiny-chat}}\n"


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data files in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text("a\nb\n")
    Path("two.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    Path("three.jsonl").write_text('{"question": "a", "text": "b"}\n')
    Path("other.jsonl").write_text('{"a": "b", "c": "d"}\n')
    Path("twice.csv").write_text("prompt,prompt\na,b\n")
    Path("empty.jsonl").write_text("\n")
    Path("batch.jsonl").write_text('{"custom_id": 5}\n')
    Path("languages.jsonl").write_text('{"lang": "de", "text": "eins"}\n')
    Path("pairs.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')


def found(text: str) -> list[str]:
    (document,) = parse_documents(HEAD + text, "t.yaml")
    return [str(each) for each in look_at_data([compile_document(document)])]


def dataset(data: str) -> list[str]:
    return found(f"{MODEL}  data: {{type: dataset, {data}}}\n")


@pytest.mark.parametrize(
    "data",
    [
        "url: one.txt",
        "url: one.txt, split: 'train[:1]'",
        "url: two.jsonl",
        "url: two.jsonl, column: answer",
        "url: three.jsonl, column: question",
        "url: no/such-dataset",
        "url: https://example.invalid/x.jsonl",
        "url: 's3://bucket/x.jsonl'",
    ],
)
def test_what_is_sound_or_elsewhere_is_silent(data: str) -> None:
    assert dataset(data) == []


@pytest.mark.parametrize(
    ("data", "column", "message"),
    [
        ("url: on.txt", 30, "spec.data.url: on.txt: no such file in .; did you mean 'one.txt'?"),
        ("url: one.txt, split: test", 46, "spec.data.split: one.txt has no split 'test'; splits:"),
        (
            "url: one.txt, split: 'train+tset'",
            46,
            "spec.data.split: one.txt has no split 'tset'; splits: train",
        ),
        (
            "url: two.jsonl, column: answr",
            49,
            "spec.data.column: two.jsonl has no column 'answr'; did you mean 'answer'?",
        ),
        (
            "url: three.jsonl",
            30,
            "spec.data.url: three.jsonl has 2 columns; say which holds the prompts with "
            "data.column: question, text",
        ),
        ("url: other.jsonl", 30, "say which holds the prompts with data.column: a, c"),
        ("url: twice.csv", 30, "2 columns are called 'prompt': give each its own name"),
        ("url: a/b/c", 30, "'a/b/c' is neither a file or folder that exists (looked in "),
        ("url: empty.jsonl", 30, "spec.data.url: empty.jsonl has no rows"),
        ("url: ./batch.jsonl, column: custom_id, split: 'train[:5]', name: null", 30, None),
        ("url: pipe.jsonl", 30, "spec.data.url: pipe.jsonl: is a pipe or a device"),
    ],
)
def test_what_is_missing_is_told_at_its_place(data: str, column: int, message: str | None) -> None:
    os.mkfifo("pipe.jsonl")
    errors = dataset(data)
    if message is None:
        assert errors == []
    else:
        (error,) = errors
        assert error.startswith(f"t.yaml:6:{column}: ")
        assert message in error


def test_data_of_a_later_stage_is_looked_at() -> None:
    stages = """  stages:
    - {name: first, spec: {data: {type: dataset, url: one.txt}}}
    - {name: last, spec: {data: {type: dataset, url: gone.txt}}}
"""
    (error,) = found(MODEL + stages)
    assert error.startswith("t.yaml:8:54: spec.stages[1].spec.data.url: gone.txt: no such file")


def test_a_batch_is_opened_and_its_first_request_read() -> None:
    (gone,) = found(f"{MODEL}  data: {{type: openai_batch, url: gone.jsonl}}\n")
    assert "spec.data.url: gone.jsonl: no such file" in gone
    (wrong,) = found(f"{MODEL}  data: {{type: openai_batch, url: batch.jsonl}}\n")
    assert "spec.data.url: batch.jsonl:1: custom_id is missing: 5; it must be text" in wrong


def test_columns_of_trainings_and_their_evaluation_are_looked_at() -> None:
    sft = f"  taskType: sft\n{MODEL}"
    assert found(f"{sft}  data: {{dataset_name: pairs.jsonl, shuffle: true}}\n") == []
    data = "{dataset_name: pairs.jsonl, prompt_column: promt}"
    first, second = found(f"{sft}  data: {data}\n  evaluation: {{data: {data}}}\n")
    assert first.startswith("t.yaml:7:52: spec.data.prompt_column: pairs.jsonl has no column")
    assert second.startswith("t.yaml:8:65: spec.evaluation.data.prompt_column: pairs.jsonl has no")
    (empty,) = found(f"{sft}  data: {{dataset_name: empty.jsonl}}\n")
    assert "spec.data.dataset_name: empty.jsonl has no rows" in empty
    (split,) = found(f"{sft}  data: {{dataset_name: pairs.jsonl, split: dev}}\n")
    assert "spec.data.split: pairs.jsonl has no split 'dev'" in split


def test_an_address_that_a_reference_gives_is_left_alone() -> None:
    stages = """  stages:
    - {name: first, spec: {data: {type: list, items: [a]}}}
    - {name: last, spec: {data: {type: dataset, url: './${first.result.items[0].output}.jsonl'}}}
"""
    assert found(MODEL + stages) == []


def test_models_adapters_and_checkpoints_of_this_machine_are_looked_for() -> None:
    Path("weights").mkdir()
    rows = "  data: {type: list, items: [a]}\n"
    missing = found(
        rows + "  model:\n"
        "    source: {type: local, identifier: weight}\n"
        "    adapters: [{path: ./none}, {path: weights}, {url: https://example.invalid/a.zip}]\n"
    )
    model, adapter = missing
    assert model.startswith("t.yaml:7:39: spec.model.source.identifier: weight: no such file or")
    assert model.endswith("did you mean 'weights'?")
    assert adapter.startswith("t.yaml:8:23: spec.model.adapters[0].path: ./none: no such file or")
    assert found(f"{rows}  model: {{source: {{type: local, identifier: weights}}}}\n") == []
    (gone,) = found(
        f"  taskType: sft\n{MODEL}  data: {{rows: [{{prompt: a, completion: b}}]}}\n"
        "  checkpoint: {load: {path: gone.zip}}\n"
    )
    assert "spec.checkpoint.load.path: gone.zip: no such file or folder" in gone
    for name in ("~nobody-of-this-name/weights", "x" * 5000):
        (odd,) = found(f"{rows}  model: {{source: {{type: local, identifier: {name}}}}}\n")
        assert odd.startswith(f"t.yaml:6:45: spec.model.source.identifier: {name}: ")


def test_a_model_of_the_hub_or_of_an_earlier_stage_is_left_alone() -> None:
    stages = """  stages:
    - name: train
      spec:
        taskType: sft
        model: {source: {identifier: my/model}}
        data: {dataset_name: pairs.jsonl}
    - name: use
      spec:
        taskType: inference
        model: {source: {type: local, identifier: "${train.result.final_model_path}"}}
        data: {type: list, items: [a]}
"""
    assert found(stages) == []


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("lang", []),
        (
            "lnag",
            [
                "t.yaml:7:30: spec.data.url: languages.jsonl has no column 'lnag' to select by; did"
                " you mean 'lang'? columns: lang, text"
            ],
        ),
    ],
)
def test_the_column_of_partitions_is_looked_for(column: str, expected: list[str]) -> None:
    partitions = f"  partitions: {{type: column, column: {column}}}\n"
    assert (
        found(f"{MODEL}{partitions}  data: {{type: dataset, url: languages.jsonl}}\n") == expected
    )
