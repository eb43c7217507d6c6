"""An index by its name: over the API, as an agent's tool, and where a template names it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lancedb")
pytest.importorskip("pydantic_ai")

from starlette.testclient import TestClient

from mloc_dagster.api import create_app
from mloc_dagster.errors import UnknownNameError
from mloc_dagster.executors import ModelCache
from mloc_dagster.results import open_store
from mloc_dagster.schema import AgentSpec, find_task_type
from tests.contract.test_agents import Attempt, spec
from tests.contract.test_retrieval_tasks import OWLS, Farm
from tests.memory_ledger import MemoryLedger
from tests.unit.api.test_openai_calls import MemoryFleet

URL = "/api/v1/indexes"
TEMPLATE = """\
apiVersion: mloc/v1
kind: RetrievalTask
metadata: {name: ask}
spec:
  query: x
  index: {engine: lancedb, name: frm}
  embedding: {model: {source: {type: builtin, identifier: tiny-chat}}}
"""


def asking(**rag: Any) -> AgentSpec:
    call = {"tool_calls": [{"name": "rag", "arguments": {"query": "{prompt}"}}]}
    tool = {"rag": {"index": "farm", "engine": "lancedb", **rag}}
    return spec([call, {"text": "{result}"}], {"tools": [tool]})


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    cache = ModelCache(4 << 30)
    found = Farm(tmp_path, cache)
    found.index.pop("url")  # on the results store, where the API looks
    found.build("one", OWLS)
    found.build("two", {**OWLS, "dogs": ["Dogs bark."]})
    yield found
    cache.clear()


def test_an_index_is_listed_searched_called_and_dropped(farm: Farm) -> None:
    fleet = MemoryFleet()
    with TestClient(create_app(MemoryLedger(), fleet), "http://127.0.0.1") as http:  # type: ignore[arg-type]
        _reads(http)
        _searches(http, fleet)
        _agent_calls(farm)
        _templates_are_checked(http)
        assert http.delete(f"{URL}/farm").json()["index"]["name"] == "farm"
        assert http.get(URL).json()["indexes"] == []
        assert open_store().folder("indexes/model/lancedb/farm").list() == []


def _reads(http: TestClient) -> None:
    (listed,) = http.get(URL).json()["indexes"]
    shown = http.get(f"{URL}/farm").json()["index"]
    assert listed == shown
    assert [each["task_id"] for each in shown["versions"]] == ["one", "two"]
    assert (shown["engine"], shown["dimension"], shown["chunks"]) == ("lancedb", 128, 6)
    missing = http.get(f"{URL}/frm")
    assert missing.status_code == 404
    assert "did you mean 'farm'" in missing.json()["detail"]
    assert http.get(f"{URL}/farm?engin=x").status_code == 422


def _searches(http: TestClient, fleet: MemoryFleet) -> None:
    asked = {"query": "Dogs bark.", "top_k": 2}
    assert http.post(f"{URL}/farm/search", json=asked).status_code == 503  # no worker
    with fleet.worker():
        for mode in ("dense", "keyword", "hybrid"):
            found = http.post(f"{URL}/farm/search", json={**asked, "mode": mode})
            assert found.status_code == 200, found.text
            body = found.json()
            assert (body["version"], body["passages"][0]["document"]) == (2, "dogs")
        older = {**asked, "version": 1, "filter": {"about": ["mice", "dogs"]}}
        body = http.post(f"{URL}/farm/search", json=older).json()
        assert {each["document"] for each in body["passages"]} == {"mice"}
        wrong = http.post(f"{URL}/farm/search", json={**asked, "version": 9})
        assert wrong.status_code == 400
        assert "has no version 9" in wrong.json()["detail"]
    assert http.post(f"{URL}/farm/search", json={**asked, "mod": "x"}).status_code == 422


def _agent_calls(farm: Farm) -> None:
    rows = Attempt(farm.store.task("agent"), asking(top_k=1), ["Dogs bark."]).run()
    assert rows[0].error is None
    assert "[1] dogs (score" in rows[0].output
    assert "Dogs bark." in rows[0].output
    words = asking(mode="keyword", filter={"about": "mice"})
    rows = Attempt(farm.store.task("words"), words, ["grain and dogs"]).run()
    assert "A mouse eats grain." in rows[0].output
    assert "dogs" not in rows[0].output.replace("grain and dogs", "")
    look = find_task_type("agent").check
    assert look is not None
    look(asking(), [])
    with pytest.raises(UnknownNameError, match="unknown index 'frm'; did you mean 'farm'"):
        look(asking(index="frm"), [])


def _templates_are_checked(http: TestClient) -> None:
    refused = http.post("/api/v1/tasks", content=TEMPLATE)
    assert refused.status_code == 422
    (found,) = refused.json()["errors"]
    assert (found["line"], found["message"]) == (6, "unknown index 'frm'; did you mean 'farm'?")
    there = TEMPLATE.replace("frm", "farm")
    assert http.post("/api/v1/tasks", content=there).status_code == 202
    built = TEMPLATE.replace(
        "  index:", "  corpus: {source: {url: 'https://1.1.1.1/a.md'}}\n  index:"
    )
    assert http.post("/api/v1/tasks", content=built).status_code == 202, "it builds the index"
