"""Templates with partitions: `mloc run --partition`, runs of a project, what Dagster records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

import mloc
from mloc_dagster.cli import entry
from mloc_dagster.results import open_store, read_record, read_rows
from mloc_dagster.settings import settings

pytestmark = pytest.mark.e2e

ROWS = [
    {"lang": "de", "text": "eins"},
    {"lang": "en", "text": "two"},
    {"lang": "de", "text": "drei"},
]


class Place:
    """A template by languages in a folder, and the command line there."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capfd = capfd
        (folder / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ROWS))

    def template(self, name: str, partitions: dict[str, Any], data: dict[str, Any]) -> Path:
        document = {
            "apiVersion": "mloc/v1",
            "kind": "EchoTask",
            "metadata": {"name": name},
            "spec": {"taskType": "echo", "partitions": partitions, "data": data},
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def languages(self, name: str, **partitions: Any) -> Path:
        data = {"type": "dataset", "url": str(self.folder / "rows.jsonl"), "column": "text"}
        return self.template(name, {"type": "column", "column": "lang", **partitions}, data)

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """Runs `mloc run`; returns the id of the task, or what is said of a failure."""
        self._capfd.readouterr()
        found = entry.run(["run", "-q", *map(str, arguments)])
        out, err = self._capfd.readouterr()
        assert found == code, err
        return err if code else Path(out.strip()).name


@pytest.fixture
def place(
    tmp_path: Path,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Place:
    monkeypatch.setenv("MLOC_RESULTS_URL", str(tmp_path / "results"))
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings.cache_clear()
    return Place(tmp_path, capfd)


def outputs(task_id: str) -> list[str | None]:
    return [each.output for each in read_rows(open_store().task(task_id))]


def materialized(instance: dg.DagsterInstance, name: str) -> set[str]:
    return set(instance.get_materialized_partitions(dg.AssetKey([name, "responses"])))


def test_a_run_computes_the_rows_of_its_partition_and_dagster_knows_which(
    place: Place, instance: dg.DagsterInstance
) -> None:
    template = place.languages("by-column", partition_keys=["de", "en"])
    german = place.run(template, "--partition", "de")
    assert outputs(german) == ["eins", "drei"]
    assert materialized(instance, "by-column") == {"de"}
    assert read_record(open_store().task(german)).partition == "de"
    place.run(template, "--partition", "en")
    assert materialized(instance, "by-column") == {"de", "en"}

    again = place.run("--resume", german, "--fresh")
    assert (again, outputs(again)) == (german, ["eins", "drei"])
    asset = dg.AssetKey(["by-column", "responses"])
    newest_first = instance.fetch_materializations(asset, limit=10).records
    assert [each.partition_key for each in newest_first] == ["de", "en", "de"]
    said = place.run("--resume", german, "--partition", "en", code=2)
    assert "a task that is resumed stays of its partition" in said


def test_what_is_no_partition_runs_nothing(place: Place, instance: dg.DagsterInstance) -> None:
    template = place.languages("refusing", partition_keys=["de", "en"])
    assert "say which with --partition KEY" in place.run(template, code=2)
    said = place.run(template, "--partition", "dee", code=2)
    assert said == "mloc: refusing has no partition 'dee'; did you mean 'de'?\n"
    assert "echo has no partitions" in place.run("core/echo", "--partition", "de", code=2)
    assert not (place.folder / "results").exists()
    assert materialized(instance, "refusing") == set()


def test_a_value_of_the_column_is_added_when_it_is_run_and_a_typing_error_is_not(
    place: Place, instance: dg.DagsterInstance
) -> None:
    template = place.languages("as-they-come")
    assert outputs(place.run(template, "--partition", "en")) == ["two"]
    said = place.run(template, "--partition", "enn", code=2)
    assert "has 'enn' in column 'lang'; did you mean 'en'?" in said
    assert instance.get_dynamic_partitions("as-they-come_lang") == ["en"]


def test_a_day_names_the_file_that_is_read(place: Place, instance: dg.DagsterInstance) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        (place.folder / f"{day}.txt").write_text(f"what happened on {day}\n")
    data = {"type": "dataset", "url": str(place.folder / "${partition_key}.txt")}
    template = place.template("daily", {"type": "daily", "start_date": "2026-01-01"}, data)
    task_id = place.run(template, "--partition", "2026-01-02")
    assert outputs(task_id) == ["what happened on 2026-01-02"]
    assert materialized(instance, "daily") == {"2026-01-02"}
    said = place.run(template, "--partition", "2026-01-03", code=2)  # before anything is run
    assert "2026-01-03.txt: no such file" in said
    assert "from 2026-01-01 to " in place.run(template, "--partition", "2025-12-31", code=2)
    again = mloc.run(template, partition="2026-01-01", progress=False)
    assert outputs(again.task_id) == ["what happened on 2026-01-01"]
    assert materialized(instance, "daily") == {"2026-01-01", "2026-01-02"}


def test_assets_of_a_project_have_the_partitions_of_their_template(place: Place) -> None:
    assets = mloc.mloc_assets(place.languages("in-project", partition_keys=["de", "en"]))
    found: list[Any] = []

    @dg.asset(ins={"said": dg.AssetIn(["in-project", "responses"])})
    def report(said: dict[str, list[dict[str, Any]]]) -> None:
        found.append({key: [row["output"] for row in rows] for key, rows in said.items()})

    with dg.instance_for_test() as instance:
        for key in ("de", "en"):
            assert dg.materialize(assets, instance=instance, partition_key=key).success
        assert dg.materialize([*assets, report], selection=[report], instance=instance).success
    assert found == [{"de": ["eins", "drei"], "en": ["two"]}]


def test_a_run_of_none_of_its_partitions_says_so(place: Place) -> None:
    assets = mloc.mloc_assets(place.languages("without", partition_keys=["de", "en"]))
    with dg.instance_for_test() as instance:
        result = dg.materialize(assets, instance=instance, raise_on_error=False)
    (failed,) = [each for each in result.all_events if each.is_step_failure]
    assert "reads the rows of one partition, and this run has none" in str(failed.step_failure_data)
