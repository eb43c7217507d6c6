"""Where an index may be in a template that comes over the API: it is written to."""

from __future__ import annotations

import pytest

from mloc_dagster.net import OutOfReachError, Reach
from mloc_dagster.settings import settings
from tests.api_server import serving

TEMPLATE = """\
apiVersion: mloc/v1
kind: RetrievalTask
metadata: {name: ask}
spec:
  query: x
  index: {engine: ENGINE, name: handbook, url: "URL"}
  embedding: {model: {source: {type: builtin, identifier: tiny-embed}}}
"""
REFUSED = [
    ("lancedb", "/etc", "MLOC_API_INDEX_URLS"),
    ("lancedb", "s3://bucket/lance", "MLOC_API_INDEX_URLS"),
    ("pgvector", "postgresql://u:secret@10.0.0.5/db", "MLOC_API_INDEX_URLS"),
    ("pgvector", "host=10.0.0.5 dbname=db", "MLOC_API_INDEX_URLS"),
    ("qdrant", "path:/srv", "MLOC_API_INDEX_URLS"),
    ("qdrant", "http://127.0.0.1:6333", "MLOC_API_PRIVATE_ADDRESSES"),
    ("qdrant", "http://169.254.169.254", "link-local"),
    ("pgvector", "${PGURL}", "MLOC_API_VARIABLES"),
]


@pytest.mark.parametrize(("engine", "url", "said"), REFUSED)
def test_places_that_are_the_operators_are_refused(engine: str, url: str, said: str) -> None:
    text = TEMPLATE.replace("ENGINE", engine).replace("URL", url)
    with serving() as api:
        answer = api.client.post("/api/v1/tasks", content=text)
    assert answer.status_code == 422
    (found,) = answer.json()["errors"]
    assert (found["line"], found["path"]) == (6, "spec.index.url")
    assert said in found["message"]
    assert "secret" not in answer.text


def test_the_operator_lists_places(monkeypatch: pytest.MonkeyPatch) -> None:
    place = "postgresql://u@10.0.0.5/db"
    monkeypatch.setenv("MLOC_API_INDEX_URLS", f"{place},http://127.0.0.1:6333")
    settings.cache_clear()
    for engine, url in (("pgvector", place), ("qdrant", "http://127.0.0.1:6333")):
        text = TEMPLATE.replace("ENGINE", engine).replace("URL", url)
        with serving() as api:
            assert api.client.post("/api/v1/tasks", content=text).status_code == 202


def test_a_worker_looks_again() -> None:
    tool = {"rag": {"index": "handbook", "engine": "lancedb", "url": "/srv/other"}}
    spec = {"taskType": "agent", "agent": {"tools": [tool]}}
    with pytest.raises(OutOfReachError, match=r"agent\.tools\.0\.rag\.url.*MLOC_API_INDEX_URLS"):
        Reach("api").check_spec(spec)
    Reach("local").check_spec(spec)
