"""`mloc run` of a planned task: the order is the plan's, the answers are in the input's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e

CAPITALS = ["France", "Spain", "Italy", "Japan", "France", "Egypt", "Norway", "Spain", "France"]
TEMPLATE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: {name}}}
spec:
  taskType: inference
  enforce_cpu: true
  parallel: {{max_shards: 3, strategy: {strategy}}}
  model: {{engine: transformers, source: {{type: builtin, identifier: tiny-chat}}}}
  data: {{type: list, items: {items}}}
  inference: {{temperature: 0, max_tokens: 8}}
  output: {{artifacts: [responses.json, responses.parquet]}}
"""


def test_a_planned_run_answers_in_input_order(
    session_home: Path, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    questions = [f"What is the capital of {country}?" for country in CAPITALS]
    folders: dict[str, Path] = {}
    for strategy in ("rows", "tokens"):
        name = f"capitals-{strategy}"
        path = tmp_path / f"{name}.yaml"
        text = TEMPLATE.format(name=name, strategy=strategy, items=json.dumps(questions))
        path.write_text(text)
        done = subprocess.run(
            [sys.executable, "-m", "mloc_dagster.cli", "run", str(path), "-q"],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            cwd=tmp_path,
            env={
                **{key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"},
                "MLOC_HOME": str(session_home),
                "MLOC_RESULTS_URL": str(tmp_path / "results"),
                "OMP_NUM_THREADS": "1",
            },
        )
        assert done.returncode == 0, done.stderr
        folders[strategy] = Path(done.stdout.strip())

    def items(strategy: str) -> list[tuple[int, str]]:
        responses = json.loads((folders[strategy] / "responses.json").read_text())
        return [(item["index"], item["output"]) for item in responses["result"]["items"]]

    assert items("tokens") == items("rows")
    assert [index for index, _ in items("tokens")] == list(range(len(CAPITALS)))
    assert items("tokens")[0][1] == "Paris"

    plan = json.loads((folders["tokens"] / "plan.json").read_text())
    assert plan["windows"] == [0]
    assert plan["expected"]["tokens"] == "counted by the tokenizer of tiny-chat"
    table = pq.read_table(folders["tokens"] / "responses.parquet").to_pydict()
    assert table["prompt"] == questions
    assert "place" not in table
    # Rows with the same prompt were computed side by side, hence in one shard.
    assert len(set(zip(table["prompt"], table["shard"], strict=True))) == len(set(questions))

    event = instance.get_latest_materialization_event(dg.AssetKey(["capitals-tokens", "responses"]))
    assert event is not None
    assert event.asset_materialization is not None
    metadata = event.asset_materialization.metadata
    lines = [
        [each.strip() for each in line.strip("|").split("|")]
        for line in str(metadata["plan"].value).splitlines()[2:]
    ]
    shown = {name: (measured, planned) for name, measured, planned in lines}
    assert all(float(each) >= 1 for each in shown["slowest shard over the mean"])
    assert [float(each) for each in shown["prefix cache hits, share"]] == [0, 0]
    padding, unplanned = shown["padding, share of tokens"]
    assert 0 <= float(padding) < 1
    assert not unplanned
