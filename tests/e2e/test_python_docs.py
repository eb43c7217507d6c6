"""The examples of docs/python.md and of the README's section on Python, run as they stand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from mloc_dagster.settings import settings
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

BLOCK = re.compile(r"^(<!-- not run: \S.* -->\n)?```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["docs/python.md", "README.md"])
def test_the_examples_run(
    name: str,
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLOC_HOME", str(session_home))
    monkeypatch.chdir(tmp_path)
    settings.cache_clear()
    source = {
        "apiVersion": "mloc/v1",
        "kind": "InferenceTask",
        "metadata": {"name": "gsm8k"},
        "spec": {
            "model": {"source": {"type": "builtin", "identifier": "tiny-chat"}},
            "data": {"type": "dataset", "url": "openai/gsm8k", "column": "question"},
            "inference": {"temperature": 0, "max_tokens": 8},
            "evaluation": {"reference": "answer", "metrics": ["numeric"]},
        },
    }
    (tmp_path / "gsm8k.yaml").write_text(json.dumps(source))
    names = {"rows": [{"question": "What is 3 + 4?", "answer": "8"}]}
    text = "\n".join(
        code for skipped, code in BLOCK.findall((ROOT / name).read_text()) if not skipped
    )
    exec(compile(text, name, "exec"), names)
    out = capsys.readouterr().out
    assert (tmp_path / "wrong.parquet").is_file()
    if name == "docs/python.md":
        assert "set spec.ecko.delay_s: spec.ecko: unknown key 'ecko'" in out
        assert "poisoned row" in out
        assert "2 three" in out


def test_the_example_of_a_dagster_project_runs() -> None:
    blocks = BLOCK.findall((ROOT / "docs" / "dagster.md").read_text())
    code = "\n".join(code for _, code in blocks)
    names: dict[str, Any] = {}
    exec(compile(code, "docs/dagster.md", "exec", dont_inherit=True), names)
    names["defs"].get_repository_def()
    assets = [names["questions"], *names["answers"], names["report"]]
    with dg.instance_for_test() as instance:
        result = dg.materialize(assets, instance=instance, partition_key="2026-01-02")
    (made,) = result.asset_materializations_for_node("report")
    assert made.metadata["answered"].value == 1
    assert names["by_topic"].partitions_def.get_partition_keys() == ["news", "calendar"]
