"""A template of `rag` from a folder of documents to answers with citations, more than once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

pytest.importorskip("torch")
pytest.importorskip("lancedb")
pytest.importorskip("semantic_text_splitter")

from mloc_dagster.compile import compile_mapping
from mloc_dagster.local_run import run_template
from mloc_dagster.results import open_store, verify_manifest

pytestmark = pytest.mark.e2e

PAGES = {
    "owls.md": "# Owls\n\nOwls hunt at night, and sleep in old trees during the day.\n",
    "mice.md": "# Mice\n\nMice hide in the hay, and eat grain.\n",
    "bees.html": "<h1>Bees</h1><p>Bees gather nectar from flowers in summer.</p>",
}

VERDICT = {
    "statements": [
        {"text": "The first passage says so.", "passage": 1, "supported": True},
        {"text": "No other one does.", "passage": 0, "supported": False},
    ],
    "reason": "No passage speaks of others.",
}


def template(folder: Path, **changes: Any) -> dict[str, Any]:
    turn = {"text": "So the first passage says [1], and no other one [9]."}
    spec = {
        "taskType": "rag",
        "enforce_cpu": True,
        "data": {"type": "dataset", "url": str(folder / "questions.jsonl"), "column": "question"},
        "corpus": {"source": {"url": f"{folder}/docs/*"}, "error_budget": 0.5},
        "index": {"engine": "lancedb", "name": "farm", "url": str(folder / "lance")},
        "embedding": {"model": {"source": {"type": "builtin", "identifier": "tiny-embed"}}},
        "search": {"mode": "hybrid", "candidates": 10},
        "rerank": {
            "model": {"source": {"type": "builtin", "identifier": "tiny-rerank"}},
            "top_k": 2,
        },
        "generate": {
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": "scripted",
                "scripted": {"turns": [turn]},
            }
        },
        "evaluation": {
            "relevant_column": "page",
            "metrics": ["recall@1", "recall@2", "mrr", "faithfulness"],
            "gate": "faithfulness >= 0.5",
            "judge": {
                "model": {
                    "source": {"type": "builtin", "identifier": "tiny-chat"},
                    "engine": "scripted",
                    "scripted": {"turns": [{"text": json.dumps(VERDICT)}]},
                }
            },
        },
        **changes,
    }
    return {
        "apiVersion": "mloc/v1",
        "kind": "RetrievalTask",
        "metadata": {"name": "farm"},
        "spec": {key: each for key, each in spec.items() if each is not None},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name, text in PAGES.items():
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 broken")
    questions = [
        {"question": "When do owls hunt?", "page": ["owls.md"]},
        {"question": "What do mice eat?", "page": ["mice.md"]},
        {"question": "What do bees gather from flowers?", "page": ["bees.html"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return tmp_path


def results(outcome: Any) -> dict[str, dict[str, Any]]:
    assert outcome.succeeded, outcome.failures
    found: dict[str, dict[str, Any]] = {}
    for each in outcome.tasks:
        task = open_store().task(each.task_id)
        assert verify_manifest(task) == ()
        found[each.node] = json.loads(task.read_bytes("responses.json"))["result"]
    return found


def test_documents_become_answers_with_citations_and_only_what_changed_is_embedded_again(
    folder: Path, instance: dg.DagsterInstance
) -> None:
    done = results(run_template(compile_mapping(template(folder)), instance))
    assert list(done) == [
        "farm-chunks",
        "farm-index",
        "farm-found",
        "farm-reranked",
        "farm-answers",
        "farm",
    ]
    broken = [each for each in done["farm-chunks"]["items"] if each.get("error")]
    assert [each["custom_id"] for each in broken] == ["broken.pdf"]
    assert done["farm-index"]["index"] == {
        "engine": "lancedb", "name": "farm", "version": 1, "chunks": 3
    }  # fmt: skip
    answers = done["farm"]["items"]
    for answer, page in zip(answers, PAGES, strict=True):
        (cited,) = answer["citations"]
        assert (cited["n"], cited["document"]) == (1, page)
        assert answer["retrieved"][0]["document"] == page
        assert "9" in answer["citation_error"]
        assert answer["output"] == "So the first passage says [1], and no other one [9]."
        assert answer["judgement"]["score"] == 0.5
    assert done["farm"]["metrics"] == {
        "recall@1": 1.0, "recall@2": 1.0, "mrr": 1.0, "faithfulness": 0.5
    }  # fmt: skip
    assert done["farm"]["usage"]["num_queries"] == 3

    (folder / "docs" / "mice.md").write_text("# Mice\n\nMice eat cheese on Sundays.\n")
    again = results(run_template(compile_mapping(template(folder)), instance))
    assert again["farm-index"]["index"]["version"] == 2
    embedded = {
        each["custom_id"]: each["output"]
        for each in again["farm-index"]["items"]
        if not each.get("error")
    }
    assert embedded == {
        "bees.html": "1 chunk, 0 embedded",
        "mice.md": "1 chunk, 1 embedded",
        "owls.md": "1 chunk, 0 embedded",
    }
    texts = [each["text"] for each in again["farm"]["items"][1]["retrieved"]]
    assert any("cheese" in each for each in texts)
    assert not any("grain" in each for each in texts)


def test_an_index_that_is_not_there_is_named_before_anything_runs(
    folder: Path, instance: dg.DagsterInstance
) -> None:
    outcome = run_template(
        compile_mapping(template(folder, corpus=None, rerank=None, generate=None, evaluation=None)),
        instance,
    )
    assert not outcome.succeeded
    assert "'farm'" in str(outcome.failures)
