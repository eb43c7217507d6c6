"""Data sets and models upstream of a template's assets: one asset each, whoever reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import mloc
from mloc_dagster.assets.placement import Placement
from mloc_dagster.assets.template_job import template_definitions
from mloc_dagster.compile import CompiledTemplate, compile_mapping
from mloc_dagster.definitions import build_definitions, defs

TINY = {"source": {"type": "builtin", "identifier": "tiny-chat"}}
HUB = {"source": {"identifier": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "main"}}


def document(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    task_type = {} if "stages" in spec else {"taskType": "inference" if "model" in spec else "echo"}
    return {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": name},
        "spec": {**task_type, **spec},
    }


def reads(url: str, name: str = "reader", **spec: Any) -> CompiledTemplate:
    return compile_mapping(document(name, {"data": {"type": "dataset", "url": url}, **spec}))


def parents(graph: Any, *key: str) -> set[str]:
    return {each.to_user_string() for each in graph.get(dg.AssetKey(key)).parent_keys}


def test_the_library_is_one_graph_without_anything_undefined() -> None:
    graph = defs().get_repository_def().asset_graph
    assert parents(graph, "demo", "responses") == {
        "models/tiny-chat",
        "datasets/library/data/questions.jsonl",
    }
    model = graph.get(dg.AssetKey(["models", "meta-llama", "Llama-3.1-8B-Instruct"]))
    assert {each.path[0] for each in model.child_keys} >= {"gsm8k-single", "gsm8k-two-branch"}
    assert (model.group_name, set(model.kinds)) == ("models", {"model", "huggingface"})
    sources = [graph.get(each) for each in graph.get_all_asset_keys() if len(each.path) > 2]
    assert all(each.description for each in sources)


def test_a_stage_that_reads_another_ones_weights_names_no_model_beside() -> None:
    graph = defs().get_repository_def().asset_graph
    assert parents(graph, "align-tiny", "answers_responses") == {
        "align-tiny/ppo_checkpoint",
        "datasets/library/data/questions.jsonl",
    }
    assert parents(graph, "align-tiny", "reward_checkpoint") == {
        "align-tiny/sft_checkpoint",
        "datasets/library/data/align_preferences.jsonl",
    }


@pytest.mark.parametrize(
    ("url", "key", "shown"),
    [
        ("openai/gsm8k", "datasets/openai/gsm8k", "https://huggingface.co/datasets/openai/gsm8k"),
        ("s3://bucket/a/rows.parquet", "datasets/s3/bucket/a/rows.parquet", None),
        ("/data/rows.csv", "datasets/file/data/rows.csv", None),
        (
            "https://user:pass@host.example/rows.jsonl?X-Amz-Signature=abc&X-Amz-Date=1",
            "datasets/https/host.example/rows.jsonl",
            "https://host.example/rows.jsonl",
        ),
    ],
)
def test_a_key_reads_like_the_address_and_shows_no_credentials(
    url: str, key: str, shown: str | None
) -> None:
    graph = build_definitions([reads(url)]).resolve_asset_graph()
    assert parents(graph, "reader", "responses") == {key}
    node = graph.get(dg.AssetKey(key.split("/")))
    assert node.metadata["dagster/uri"].value == (shown or url)
    assert "dataset" in node.kinds
    assert len(node.kinds) <= 3


def test_two_addresses_that_differ_in_odd_characters_are_two_assets() -> None:
    keys = [
        next(iter(parents(build_definitions([reads(url)]).resolve_asset_graph(), *READER)))
        for url in ("/data/a b.csv", "/data/a_b.csv", "/data/a+b.csv", "https://h/x?id=1")
    ]
    assert len(set(keys)) == 4
    assert keys[1] == "datasets/file/data/a_b.csv"
    assert all(set(each) <= set(PLAIN) for each in keys)


READER = ("reader", "responses")
PLAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-/"


def test_what_is_written_into_a_template_or_made_by_a_stage_is_no_source() -> None:
    items = {"type": "list", "items": ["a"]}
    stages = [
        {"name": "first", "spec": {"taskType": "echo", "data": items}},
        {
            "name": "second",
            "spec": {"taskType": "echo", "data": {"type": "upstream", "node": "first"}},
        },
    ]
    graph = build_definitions([compile_mapping(document("inner", {"stages": stages}))])
    keys = graph.resolve_asset_graph().get_all_asset_keys()
    assert {each.path[0] for each in keys} == {"inner"}


def test_templates_of_a_project_share_the_model_that_they_name() -> None:
    items = {"type": "list", "items": ["a"]}
    first = mloc.mloc_assets(document("one", {"model": HUB, "data": items}), key_prefix="north")
    second = mloc.mloc_assets(document("two", {"model": HUB, "data": items}))
    merged = dg.Definitions.merge(
        dg.Definitions(assets=[*first, *mloc.mloc_sources(*first)]),
        dg.Definitions(assets=[*second, *mloc.mloc_sources(*second)]),
    )
    graph = merged.get_repository_def().asset_graph
    model = graph.get(dg.AssetKey(["models", "HuggingFaceTB", "SmolLM2-135M-Instruct"]))
    assert {each.to_user_string() for each in model.child_keys} == {
        "north/one/responses",
        "two/responses",
    }
    assert model.group_name == "models"
    # Whoever leaves the sources out has the same graph, without their descriptions.
    bare = dg.Definitions(assets=[*first, *second]).get_repository_def().asset_graph
    assert bare.get(model.key).child_keys == model.child_keys


def test_what_the_project_makes_itself_is_defined_by_the_project() -> None:
    key = ["datasets", "s3", "bucket", "rows.parquet"]

    @dg.asset(key=key)
    def rows() -> None: ...

    said = template_definitions(
        reads("s3://bucket/rows.parquet", "said"), placement=Placement(deps=(dg.AssetKey(key),))
    )
    assert said.sources == []
    graph = dg.Definitions(assets=[rows, *said.assets]).get_repository_def().asset_graph
    assert parents(graph, "said", "responses") == {"/".join(key)}


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")  # Dagster's own use of it
def test_rows_of_an_asset_are_no_data_set_and_eager_assets_wait_for_no_source() -> None:
    @dg.asset
    def questions() -> list[str]:
        return ["a"]

    eager = dg.AutomationCondition.eager()
    template = document("said", {"model": TINY, "data": {"type": "dataset", "column": "prompt"}})
    said = mloc.mloc_assets(template, rows_from="questions", automation_condition=eager)
    found = dg.Definitions(assets=[questions, *said, *mloc.mloc_sources(*said)])
    assert parents(found.resolve_asset_graph(), "said", "responses") == {
        "questions",
        "models/tiny-chat",
    }
    with dg.instance_for_test() as instance:
        before = dg.evaluate_automation_conditions(found, instance=instance)
        assert dg.materialize([questions], instance=instance).success
        after = dg.evaluate_automation_conditions(found, instance=instance, cursor=before.cursor)
    assert (before.total_requested, after.total_requested) == (0, 1)


def test_a_job_of_a_templates_assets_has_no_source_in_it(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n')
    said = mloc.mloc_assets(document("said", {"data": {"type": "dataset", "url": str(file)}}))
    job = dg.define_asset_job("all_of_it", selection=said)
    found = dg.Definitions(assets=[*said, *mloc.mloc_sources(*said)], jobs=[job])
    keys = found.resolve_job_def("all_of_it").asset_layer.executable_asset_keys
    assert {each.to_user_string() for each in keys} == {"said/responses"}


def test_an_evaluation_is_an_asset_behind_the_rows_that_it_scores() -> None:
    evaluation = {"reference": "answer", "metrics": ["exact_match"]}
    data = {"type": "dataset", "url": "q.jsonl", "column": "question"}
    stages = [
        {"name": "ask", "spec": {"taskType": "echo", "data": data, "evaluation": evaluation}},
        {
            "name": "again",
            "spec": {"taskType": "echo", "data": {"type": "upstream", "node": "ask"}},
        },
    ]
    compiled = compile_mapping(document("scored", {"stages": stages}))
    built = template_definitions(compiled, placement=Placement(key_prefix=("team",)))
    graph = (
        dg.Definitions(assets=[*built.assets, *built.evaluations]).get_repository_def().asset_graph
    )
    assert parents(graph, "team", "scored", "ask_evaluation") == {"team/scored/ask_responses"}
    assert parents(graph, "team", "scored", "again_responses") == {"team/scored/ask_responses"}
    alone = template_definitions(reads("q.jsonl", evaluation=evaluation, echo={}))
    assert [each.key.path for each in alone.evaluations] == [["reader", "evaluation"]]
