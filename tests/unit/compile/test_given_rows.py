from __future__ import annotations

import pytest

from mloc_dagster.compile.given_rows import with_rows
from mloc_dagster.compile.loader import parse_documents
from mloc_dagster.errors import InputError

HEAD = "apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {name: t}\n"


def data_of(spec: str, *path: str | int):
    (document,) = parse_documents(HEAD + spec, "t.yaml")
    found = with_rows(document, "rows.jsonl").mapping
    for step in ("spec", *path, "data"):
        found = found[step]  # type: ignore[index,call-overload]
    return found


def test_other_kinds_of_rows_go() -> None:
    new = {"type": "dataset", "url": "rows.jsonl"}
    assert data_of("spec: {data: {type: list, items: [a], shuffle: true}}") == new
    assert data_of("spec: {}") == new
    assert data_of("spec: {data: {column: q}}") == {"column": "q", **new}


def test_what_makes_prompts_stays_and_where_rows_were_goes() -> None:
    old = "{type: dataset, url: a/b, name: c, split: 'train[:5]', column: q, keep: [x]}"
    assert data_of(f"spec: {{data: {old}}}") == {
        "type": "dataset", "url": "rows.jsonl", "column": "q", "keep": ["x"],
    }  # fmt: skip


def test_the_first_stage_gets_them_and_no_other() -> None:
    spec = """spec:
  stages:
    - {name: a, spec: {data: {type: list, items: [x]}}}
    - {name: b, spec: {}}
"""
    assert data_of(spec, "stages", 0, "spec")["url"] == "rows.jsonl"
    with pytest.raises(KeyError):
        data_of(spec, "stages", 1, "spec")


def test_nodes_that_each_have_rows_cannot_share_them() -> None:
    spec = """spec:
  graph:
    nodes:
      - {name: a, spec: {data: {type: list, items: [x]}}}
      - {name: b, spec: {data: {type: list, items: [y]}}}
"""
    with pytest.raises(InputError, match=r"'a' and 'b' of .* each read rows of their own"):
        data_of(spec)


def test_a_training_reads_them_by_its_own_names() -> None:
    spec = "spec: {taskType: sft, data: {dataset_name: x, config_name: y, prompt_column: q}}"
    assert data_of(spec) == {"prompt_column": "q", "dataset_name": "rows.jsonl"}
