"""The columns of results: before anything ran, and where each of them comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
import yaml

import mloc
from mloc_dagster.compile import compile_mapping
from mloc_dagster.definitions import build_definitions

STAGES = """
stages:
  - name: ask
    spec:
      taskType: echo
      data:
        type: dataset
        url: /data/q.parquet
        prompt: "{question} ({level})"
        keep: [answer, model]
        id_column: key
      evaluation: {reference: answer, metrics: [numeric]}
  - name: judge
    spec:
      taskType: echo
      data: {type: upstream, node: ask, where: numeric < 1, text: "{output} is {columns.answer}?"}
"""


def template(spec: str, name: str = "asked") -> dict[str, Any]:
    document = {"apiVersion": "mloc/v1", "kind": "EchoTask", "metadata": {"name": name}}
    return {**document, "spec": yaml.safe_load(spec)}


def metadata_of(name: str) -> Mapping[str, Any]:
    graph = build_definitions([compile_mapping(template(STAGES))]).resolve_asset_graph()
    return graph.get(dg.AssetKey(["asked", name])).metadata


def types(metadata: Mapping[str, Any]) -> dict[str, str]:
    return {each.name: each.type for each in metadata["dagster/column_schema"].schema.columns}


def lineage(metadata: Mapping[str, Any], column: str) -> set[str]:
    found = metadata["dagster/column_lineage"].lineage.deps_by_column[column]
    return {f"{each.asset_key.path[-1]}:{each.column_name}" for each in found}


def test_the_definition_says_the_columns_that_the_template_knows() -> None:
    ask, judge = types(metadata_of("ask_responses")), types(metadata_of("judge_responses"))
    assert (ask["prompt"], ask["attempt"], ask["outputs"]) == ("string", "int32", "list<string>")
    assert {"answer", "input_model", "id", "numeric"} < set(ask)
    assert ask["numeric"] == "double"
    assert {"input_index", "answer", "input_model", "id", "numeric"} < set(judge)


def test_each_column_leads_to_those_that_it_comes_from() -> None:
    ask, judge = metadata_of("ask_responses"), metadata_of("judge_responses")
    read = {"q.parquet:question", "q.parquet:level"}
    assert lineage(ask, "prompt") == lineage(ask, "output") == read
    assert lineage(ask, "answer") == {"q.parquet:answer"}
    assert lineage(ask, "input_model") == {"q.parquet:model"}
    assert lineage(ask, "id") == {"q.parquet:key"}
    assert lineage(ask, "numeric") == {*read, "q.parquet:answer"}
    assert lineage(judge, "output") == {"ask_responses:output", "ask_responses:answer"}
    assert lineage(judge, "numeric") == {"ask_responses:numeric"}
    assert lineage(judge, "input_index") == {"ask_responses:index"}


def test_rows_of_an_asset_are_its_columns() -> None:
    spec = '{taskType: echo, data: {type: dataset, prompt: "{question}!", keep: [topic]}}'
    (said,) = mloc.mloc_assets(template(spec, "said"), rows_from="questions")
    metadata = next(iter(said.specs)).metadata
    assert lineage(metadata, "output") == {"questions:question"}
    assert lineage(metadata, "topic") == {"questions:topic"}


def test_a_checkpoint_and_rows_of_the_template_itself_have_no_lineage_of_columns() -> None:
    spec = "{taskType: echo, data: {type: list, items: [a]}}"
    (said,) = mloc.mloc_assets(template(spec, "said"))
    metadata = next(iter(said.specs)).metadata
    assert "dagster/column_schema" in metadata
    assert "dagster/column_lineage" not in metadata
