from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mloc_dagster.compile import compile_document, load_documents, parse_documents
from mloc_dagster.schema.json_schema import template_json_schema
from mloc_dagster.schema.legacy import SPELLINGS

jsonschema = pytest.importorskip("jsonschema")

ROOT = Path(__file__).parents[3]
TEMPLATES = [*(ROOT / "tests" / "templates").glob("*.yaml"), *(ROOT / "templates").glob("*/*.yaml")]


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = template_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    path = ROOT / "scripts" / "build_template_docs.py"
    spec = importlib.util.spec_from_file_location("build_template_docs", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(TEMPLATES), ids=lambda path: path.stem)
def test_what_compiles_is_valid_for_an_editor(path: Path, validator: Any) -> None:
    for document in load_documents(path):
        assert [error.message for error in validator.iter_errors(document.mapping)] == []


@pytest.mark.parametrize(
    "spec",
    [
        "{data: {type: list, items: [a]}}",
        "{model: {source: {identifier: x}}, data: {type: list, items: [a]}, inference: {tmp: 1}}",
        "{taskType: echo, model: {}, data: {type: list, items: [a]}}",
        "{taskType: echo, stages: [{name: a, spec: {taskType: echo, training: {}}}]}",
        "{taskType: echo, data: {type: list, items: [a]}, stages: [], graph: {nodes: []}}",
        "{taskType: eco, data: {type: list, items: [a]}}",
        "{taskType: echo, data: {type: list, items: [a]}, partitions: {type: dayly}}",
        "{taskType: echo, data: {type: list, items: [a]}, partitions: {type: daily}}",
        "{taskType: echo, data: {type: list, items: [a]}, partitions: {type: static, keys: [a]}}",
        "{stages: [{name: a, spec: {partitions: {type: dynamic, name: d}}}]}",
    ],
)
def test_what_is_wrong_is_marked_in_an_editor(spec: str, validator: Any) -> None:
    text = f"apiVersion: mloc/v1\nkind: InferenceTask\nmetadata: {{name: t}}\nspec: {spec}\n"
    assert list(validator.iter_errors(parse_documents(text, "t.yaml")[0].mapping))


def test_old_spellings_are_marked_as_such() -> None:
    definitions = template_json_schema()["$defs"]
    training = definitions["Training"]["properties"]
    assert training["batch_size"]["deprecated"] is True
    assert "per_device_train_batch_size" in training["batch_size"]["description"]
    text = json.dumps(definitions)
    assert all(f'"{spelling.old[-1]}"' in text for spelling in SPELLINGS)


def test_the_shipped_schema_and_docs_are_current(docs: ModuleType) -> None:
    hint = "run scripts/build_template_docs.py"
    assert docs.SCHEMA.read_text(encoding="utf-8") == docs.render_schema(), hint
    assert docs.DOCS.read_text(encoding="utf-8") == docs.render_docs(), hint


def test_the_templates_in_the_docs_compile(docs: ModuleType) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", docs.render_docs(), flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        for document in parse_documents(block, "docs"):
            assert compile_document(document).tasks
