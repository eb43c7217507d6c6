"""Data files may be named relative to the template that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mloc_dagster.compile.loader import load_documents

TEMPLATE = """
spec:
  data: {{type: dataset, url: "{url}"}}
  stages:
    - spec: {{data: {{dataset_name: "{url}"}}}}
  other: {{url: "{url}"}}
"""


def load(folder: Path, url: str) -> dict:
    template = folder / "t.yaml"
    template.write_text(TEMPLATE.format(url=url))
    return load_documents(template)[0].mapping["spec"]


def test_a_file_beside_the_template_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    spec = load(tmp_path, "rows.jsonl")
    assert spec["data"]["url"] == str(tmp_path / "rows.jsonl")
    assert spec["stages"][0]["spec"]["data"]["dataset_name"] == str(tmp_path / "rows.jsonl")
    assert spec["other"]["url"] == "rows.jsonl"


def test_a_folder_of_benchmarks_beside_the_template_is_found(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    template = tmp_path / "t.yaml"
    template.write_text("spec: {evaluation: {harness: {include_path: tasks}}}")
    spec = load_documents(template)[0].mapping["spec"]
    assert spec["evaluation"]["harness"]["include_path"] == str(tmp_path / "tasks")


def test_adapters_and_weights_beside_the_template_are_found(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "weights.zip").write_bytes(b"")
    template = tmp_path / "t.yaml"
    template.write_text(
        "kind: SFTTask\n"
        "spec:\n"
        "  model: {source: {identifier: mine}, adapters: [{path: ./mine}]}\n"
        "  checkpoint: {load: {url: weights.zip}}\n"
    )
    spec = load_documents(template)[0].mapping["spec"]
    assert spec["model"]["adapters"] == [{"path": str(tmp_path / "mine")}]
    assert spec["model"]["source"]["identifier"] == "mine"  # may be a hub id
    assert spec["checkpoint"]["load"]["url"] == str(tmp_path / "weights.zip")


def test_a_glob_beside_the_template_is_found(tmp_path: Path) -> None:
    (tmp_path / "rows-1.jsonl").write_text("{}")
    assert load(tmp_path, "rows-*.jsonl")["data"]["url"] == str(tmp_path / "rows-*.jsonl")


@pytest.mark.parametrize(
    "url", ["openai/gsm8k", "s3://bucket/rows.jsonl", "/no/such.jsonl", "no-*.csv", "x" * 5000, ""]
)
def test_anything_else_stays_as_written(tmp_path: Path, url: str) -> None:
    assert load(tmp_path, url)["data"]["url"] == url
