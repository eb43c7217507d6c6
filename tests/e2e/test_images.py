"""`mloc run` over rows with images: what the model says of them, and what the task keeps."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from tests.image_server import coloured, image_server, send
from tests.tiny_vision import NO_IMAGE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TEMPLATE = """\
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: colours}}
spec:
  taskType: inference
  enforce_cpu: true
  parallel: {{max_shards: 2}}
  model: {{engine: transformers, source: {{type: local, identifier: "{model}"}}}}
  data: {{type: dataset, url: rows.jsonl, column: question, image_columns: [image, more]}}
  inference: {{temperature: 0, max_tokens: 8, error_budget: {budget}}}
  output: {{artifacts: [responses.json, responses.parquet]}}
"""


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def run(home: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mloc_dagster.cli", "run", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=folder,
        env={
            **{key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"},
            "MLOC_HOME": str(home),
            "MLOC_RESULTS_URL": str(folder / "results"),
            "OMP_NUM_THREADS": "1",
        },
    )


def references(prompt: Any) -> list[str]:
    """Returns the images of a row as a result file has its prompt."""
    if isinstance(prompt, str) and prompt.startswith("["):
        prompt = json.loads(prompt)
    if isinstance(prompt, str):
        return []
    return [
        part["image_url"]["url"]
        for message in prompt
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def test_paths_urls_and_bytes_are_seen_and_only_references_kept(
    session_home: Path, instance: dg.DagsterInstance, tmp_path: Path, tiny_vision: Path
) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(coloured("red"))
    inline = [coloured("yellow"), coloured("purple", 40)]
    with image_server() as server:
        blue = server.add("/blue.png", send(coloured("blue", 64)))
        cells = [
            ({"image": "pictures/red.png"}, "red"),
            ({"image": blue}, "blue"),
            ({"image": data_uri(inline[0])}, "yellow"),
            ({"image": ["pictures/red.png", blue]}, "red, blue"),
            ({"image": data_uri(inline[1]), "more": "pictures/red.png"}, "purple, red"),
            ({"image": None}, NO_IMAGE),
            ({"image": f"{server.url}/gone.png"}, None),
            ({"image": str(tmp_path / "pictures" / "red.png")}, "red"),
        ]
        (tmp_path / "rows.jsonl").write_text(
            "".join(
                json.dumps({"question": "What colour is this?", "more": None, **cell}) + "\n"
                for cell, _ in cells
            )
        )
        template = tmp_path / "colours.yaml"
        template.write_text(TEMPLATE.format(model=tiny_vision, budget=0.2))
        done = run(session_home, tmp_path, "colours.yaml", "-q")
        strict = run(session_home, tmp_path, "colours.yaml", "-q", "--set",
                     "spec.inference.error_budget=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert strict.returncode == 1, strict.stderr
    assert "gone.png: the server answers 404" in strict.stdout + strict.stderr

    items = json.loads((folder / "responses.json").read_text())["result"]["items"]
    assert [item["index"] for item in items] == list(range(len(cells)))
    assert [item["output"] for item in items] == [said or "" for _, said in cells]
    errors = {item["index"]: item["error"] for item in items if item.get("error")}
    assert errors == {6: f"image {server.url}/gone.png: the server answers 404 Not Found"}

    table = pq.read_table(folder / "responses.parquet").to_pydict()
    assert table["output"] == [said or "" for _, said in cells]
    kept = [references(prompt) for prompt in table["prompt"]]
    red = str(tmp_path / "pictures" / "red.png")
    assert kept[0] == [red]
    assert kept[1] == [blue]
    assert kept[3] == [red, blue]
    assert kept[5] == []
    named = [kept[2][0], kept[4][0]]
    assert [(folder / each.removeprefix("task://")).read_bytes() for each in named] == inline

    files = [path for path in folder.rglob("*") if path.is_file()]
    outside = [path for path in files if folder / "input" / "images" not in path.parents]
    assert len(files) - len(outside) == 2
    marks = [b"data:image", b"base64", *inline, *(base64.b64encode(each)[:40] for each in inline)]
    assert [str(path) for path in outside if any(mark in path.read_bytes() for mark in marks)] == []
