"""Templates of earlier versions, over a Qdrant collection that mloc did not write."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

pytest.importorskip("torch")
qdrant_client = pytest.importorskip("qdrant_client")

from qdrant_client.models import Distance, PointStruct, VectorParams

from mloc_dagster.compile import compile_mapping
from mloc_dagster.local_run import run_template
from mloc_dagster.results import open_store, verify_manifest
from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.e2e

OLD = Path(os.environ.get("OLD_TEMPLATES", ROOT.parent / "shared" / "upstream_templates"))
TINY = {"source": {"type": "builtin", "identifier": "tiny-embed"}}
TEXTS = [
    "Owls hunt at night and sleep in old trees.",
    "A server listens on a port and answers requests.",
    "Mice hide in the hay and eat grain.",
]


def documents() -> list[Any]:
    files = [ROOT / "tests" / "templates" / "agents_and_rag.yaml", *sorted(OLD.glob("*rag*.yaml"))]
    found = [each for path in files for each in yaml.safe_load_all(path.read_text())]
    return [
        pytest.param(each, id=each["metadata"]["name"])
        for each in found
        if each["kind"] == "RetrievalTask"
    ]


def result_of(document: dict[str, Any], instance: dg.DagsterInstance) -> dict[str, Any]:
    outcome = run_template(compile_mapping(document), instance)
    assert outcome.succeeded, outcome.failures
    (task,) = outcome.tasks
    folder = open_store().task(task.task_id)
    assert verify_manifest(folder) == ()
    return json.loads(folder.read_bytes("responses.json"))["result"]


@pytest.fixture
def collection(tmp_path: Path, instance: dg.DagsterInstance) -> dict[str, str]:
    """A collection as somebody's own program writes one: numbered points, any payload."""
    spec = {"taskType": "embedding", "model": TINY, "data": {"type": "list", "items": TEXTS}}
    document = {"apiVersion": "mloc/v1", "kind": "EmbeddingTask", "metadata": {"name": "vectors"}}
    items = result_of({**document, "spec": spec}, instance)["items"]
    client = qdrant_client.QdrantClient(path=str(tmp_path / "qdrant"))
    size = VectorParams(size=len(items[0]["embedding"]), distance=Distance.COSINE)
    client.create_collection("owls", vectors_config=size)
    points = [
        PointStruct(id=n, vector=each["embedding"], payload={"content": text, "n": n})
        for n, (each, text) in enumerate(zip(items, TEXTS, strict=True))
    ]
    client.upsert("owls", points)
    client.close()
    return {"url": f"path:{tmp_path}/qdrant", "collection": "owls"}


@pytest.mark.parametrize("document", documents())
def test_it_runs_with_its_placeholders_filled_in(
    document: dict[str, Any],
    collection: dict[str, str],
    instance: dg.DagsterInstance,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", "k")
    filled = json.loads(json.dumps(document))
    spec = filled["spec"]
    spec["qdrant"] |= collection
    spec["embedding"] = {"model": TINY}
    if "url" in spec["data"]:  # a dataset of the hub
        rows = [{spec["data"]["column"]: f"Where do owls live {n}?"} for n in range(3)]
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        column = spec["data"]["column"]
        spec["data"] = {"type": "dataset", "url": str(tmp_path / "rows.jsonl"), "column": column}
    found = result_of(filled, instance)
    most = spec.get("search", {}).get("top_k", 5)
    assert found["ok"] is True
    assert found["index"] == {"engine": "qdrant", "name": "owls", "version": None, "chunks": 3}
    for query, item in zip(found["queries"], found["items"], strict=True):
        scores = [each["score"] for each in query["items"]]
        assert len(scores) == min(most, len(TEXTS))
        assert scores == sorted(scores, reverse=True)
        assert query["items"][0]["payload"].keys() == {"content", "n"}
        assert item["output"] == TEXTS[query["items"][0]["payload"]["n"]]
    assert found["usage"]["num_queries"] == len(found["items"])
    if "owls" in found["queries"][0]["query"]:
        assert found["queries"][0]["items"][0]["payload"]["n"] == 0
