"""`mloc_assets` among the assets of somebody's project: rows in, rows out, partitions, keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mloc
from mloc_dagster.errors import TemplateError, UnknownNameError

pytestmark = pytest.mark.e2e

ECHO: dict[str, Any] = {
    "apiVersion": "mloc/v1",
    "kind": "EchoTask",
    "metadata": {"name": "said"},
    "spec": {"taskType": "echo", "data": {"type": "dataset", "prompt": "{text}!"}},
}
ROWS = [{"text": "one", "lang": "en"}, {"text": "zwei", "lang": "de"}]


@pytest.fixture
def instance() -> Any:
    with dg.instance_for_test() as found:
        yield found


def with_upstream(make: Callable[[], object]) -> dg.AssetsDefinition:
    @dg.asset(name="questions")
    def questions() -> Any:
        return make()

    return questions


@pytest.mark.parametrize("kind", ["list", "arrow", "pandas", "polars", "path"])
def test_whatever_an_asset_holds_can_be_the_rows(
    instance: dg.DagsterInstance, tmp_path: Path, kind: str
) -> None:
    def make() -> object:
        if kind == "path":
            pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
            return tmp_path / "rows.parquet"
        if kind == "arrow":
            return pa.Table.from_pylist(ROWS)
        return {"pandas": pd.DataFrame, "polars": pl.DataFrame}.get(kind, list)(ROWS)

    found: list[pa.Table] = []

    @dg.asset(ins={"said": dg.AssetIn(["said", "responses"])})
    def report(said: pa.Table) -> None:
        found.append(said)

    assets = [with_upstream(make), *mloc.mloc_assets(ECHO, rows_from="questions"), report]
    result = dg.materialize(assets, instance=instance)
    assert result.success
    (table,) = found
    assert table.select(["output", "text", "lang"]).to_pylist() == [
        {"output": "one!", "text": "one", "lang": "en"},
        {"output": "zwei!", "text": "zwei", "lang": "de"},
    ]


def test_rows_are_handed_on_as_the_argument_is_annotated(instance: dg.DagsterInstance) -> None:
    found: dict[str, Any] = {}
    ins = {"said": dg.AssetIn(["said", "responses"])}

    @dg.asset(ins=ins)
    def as_list(said: list[dict[str, Any]]) -> None:
        found["list"] = said

    @dg.asset(ins=ins)
    def as_pandas(said: pd.DataFrame) -> None:
        found["pandas"] = said

    @dg.asset(ins=ins)
    def as_polars(said: pl.DataFrame) -> None:
        found["polars"] = said

    @dg.asset(ins=ins)
    def as_any(said) -> None:  # type: ignore[no-untyped-def]
        found["any"] = said

    rows = with_upstream(lambda: ROWS)
    template = mloc.mloc_assets(ECHO, rows_from="questions")
    asked = [as_list, as_pandas, as_polars, as_any]
    assert dg.materialize([rows, *template, *asked], instance=instance).success
    assert [each["output"] for each in found["list"]] == ["one!", "zwei!"]
    assert list(found["pandas"]["output"]) == list(found["polars"]["output"]) == ["one!", "zwei!"]
    assert isinstance(found["any"], pa.Table)


def test_a_type_that_rows_cannot_have_is_said(instance: dg.DagsterInstance) -> None:
    @dg.asset(ins={"said": dg.AssetIn(["said", "responses"])})
    def report(said: int) -> None:
        raise AssertionError(said)

    assets = [with_upstream(lambda: ROWS), *mloc.mloc_assets(ECHO, rows_from="questions"), report]
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    failed = result.failure_data_for_node("report")
    assert failed is not None
    assert "rows cannot be had as builtins.int: annotate pyarrow.Table" in str(failed)


def test_rows_that_are_none_are_said(instance: dg.DagsterInstance) -> None:
    assets = [with_upstream(lambda: 5), *mloc.mloc_assets(ECHO, rows_from="questions")]
    result = dg.materialize(assets, instance=instance, raise_on_error=False)
    (failed,) = [each for each in result.all_events if each.is_step_failure]
    assert "data is a int: expected a pyarrow table" in str(failed.step_failure_data)


def test_one_template_feeds_another_and_the_projects_own_manager_stays(
    instance: dg.DagsterInstance,
) -> None:
    kept: dict[str, object] = {}

    class Memory(dg.IOManager):
        def handle_output(self, context: dg.OutputContext, obj: object) -> None:
            kept[context.asset_key.to_user_string()] = obj

        def load_input(self, context: dg.InputContext) -> object:
            return kept[context.asset_key.to_user_string()]

    again = {
        **ECHO,
        "metadata": {"name": "again"},
        "spec": {"taskType": "echo", "data": {"type": "dataset", "prompt": "{output}?"}},
    }
    first = mloc.mloc_assets(ECHO, rows_from="questions", key_prefix="north")
    second = mloc.mloc_assets(again, rows_from=["north", "said", "responses"])
    result = dg.materialize(
        [with_upstream(lambda: ROWS), *first, *second],
        instance=instance,
        resources={"io_manager": Memory()},
    )
    assert result.success
    assert list(kept) == ["questions"]
    (task,) = [each for each in mloc_results() if each.name == "again"]
    assert [each["output"] for each in task.rows()] == ["one!?", "zwei!?"]


def mloc_results() -> list[mloc.Result]:
    from mloc_dagster.results import open_store

    return [mloc.result(each) for each in open_store().task_ids()]


def test_assets_wait_for_others_that_they_do_not_read(instance: dg.DagsterInstance) -> None:
    order: list[str] = []

    @dg.asset
    def cleaned() -> None:
        order.append("cleaned")

    template = {**ECHO, "spec": {"taskType": "echo", "data": {"type": "list", "items": ["a"]}}}
    (said,) = mloc.mloc_assets(template, deps=["cleaned"], group_name="talk", owners=["team:nlp"])
    spec = next(iter(said.specs))
    assert [each.asset_key.to_user_string() for each in spec.deps] == ["cleaned"]
    assert (spec.group_name, list(spec.owners)) == ("talk", ["team:nlp"])
    result = dg.materialize([said, cleaned], instance=instance)
    assert result.success
    steps = [each.step_key for each in result.all_events if each.is_step_success]
    assert steps.index("cleaned") < steps.index("said__task.plan")


def test_a_partition_names_its_file_and_keeps_its_rows(
    instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    for lang, text in (("en", "one"), ("de", "zwei")):
        (tmp_path / f"{lang}.jsonl").write_text(f'{{"text": "{text}"}}\n')
    data = {"type": "dataset", "url": f"{tmp_path}/${{partition_key}}.jsonl", "column": "text"}
    template = {**ECHO, "spec": {"taskType": "echo", "data": data}}
    partitions = dg.StaticPartitionsDefinition(["de", "en"])
    said = mloc.mloc_assets(template, partitions_def=partitions)
    found: list[Any] = []

    @dg.asset(ins={"said": dg.AssetIn(["said", "responses"])})
    def every(said: pa.Table) -> None:
        found.append(said["output"].to_pylist())

    @dg.asset(ins={"said": dg.AssetIn(["said", "responses"])})
    def each_one(said: dict[str, list[dict[str, Any]]]) -> None:
        found.append({key: [row["output"] for row in rows] for key, rows in said.items()})

    for key in ("en", "de"):
        assert dg.materialize(said, instance=instance, partition_key=key).success
    assets = [*said, every, each_one]
    assert dg.materialize(assets, selection=[every, each_one], instance=instance).success
    # The two may run in either order.
    assert ["zwei", "one"] in found
    assert {"de": ["zwei"], "en": ["one"]} in found


def test_a_partition_in_a_run_without_one_is_said(instance: dg.DagsterInstance) -> None:
    data = {"type": "list", "items": ["about ${partition_key}", "costs $${partition_key}"]}
    template = {**ECHO, "spec": {"taskType": "echo", "data": data}}
    with pytest.raises(TemplateError, match=r"data\.items\[0\].*is the partition of a run"):
        mloc.mloc_assets(template)
    said = mloc.mloc_assets(template, partitions_def=dg.StaticPartitionsDefinition(["x"]))
    result = dg.materialize(said, instance=instance, raise_on_error=False)
    (failed,) = [each for each in result.all_events if each.is_step_failure]
    assert "the template names ${partition_key}, and this run has no partition" in str(
        failed.step_failure_data
    )


def test_a_refused_result_is_an_observation_and_nothing_reads_it(
    instance: dg.DagsterInstance,
) -> None:
    spec = {
        **ECHO["spec"],
        "evaluation": {"metrics": ["exact_match"], "reference": "lang", "gate": "exact_match > 0"},
    }
    (said,) = mloc.mloc_assets({**ECHO, "spec": spec}, rows_from="questions")
    upstream = with_upstream(lambda: ROWS)
    result = dg.materialize([upstream, said], instance=instance, raise_on_error=False)
    assert not result.success
    key = dg.AssetKey(["said", "responses"])
    assert instance.get_latest_materialization_event(key) is None
    observed = instance.fetch_observations(key, limit=1).records[0].asset_observation
    assert observed is not None
    assert observed.metadata["evaluation/exact_match"].value == 0
    scores = instance.get_latest_materialization_event(dg.AssetKey(["said", "evaluation"]))
    assert scores is not None, "what was measured is true of a refused result as well"
    checks = {each.check_name: each.passed for each in result.get_asset_check_evaluations()}
    assert checks == {
        "row_count": True,
        "indexes_complete": True,
        "error_budget": True,
        "no_empty_outputs": True,
        "evaluation_gate": False,
    }


def test_what_is_wrong_with_a_template_is_said_when_it_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("apiVersion: mloc/v1\nkind: EchoTask\nmetadata: {name: a}\nspec: {dta: 1}\n")
    with pytest.raises(TemplateError, match=r"t\.yaml:4:.*did you mean 'data'"):
        mloc.mloc_assets(file)
    with pytest.raises(UnknownNameError, match="core/echoo"):
        mloc.mloc_assets("core/echoo")
