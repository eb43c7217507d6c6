"""A template of `rag` that is killed again and again: same index, same rows, no chunk twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")
pytest.importorskip("lancedb")
pytest.importorskip("semantic_text_splitter")

from mloc_dagster.compile import compile_mapping
from mloc_dagster.index import open_index
from mloc_dagster.local_run import resumable, run_template
from mloc_dagster.results import Passage, open_store, verify_manifest
from mloc_dagster.schema import Index
from tests.e2e.killed_run import KillPoint, run_killed

pytestmark = pytest.mark.e2e

PAGES = {
    "bees": "Bees gather nectar from flowers in summer.",
    "cats": "Cats hunt mice, and sleep in the sun.",
    "mice": "Mice hide in the hay, and eat grain.",
    "owls": "Owls hunt at night, and sleep in old trees.",
}
QUESTIONS = ("When do owls hunt?", "What do mice eat?", "What do bees gather from flowers?")

CUTTING = "mloc_dagster.executors.retrieval.chunks:_cut"
ANSWERED = "mloc_dagster.executors.retrieval.answer:_Answers.emit"

KILLS = {
    "lancedb": (
        KillPoint(CUTTING, call=2),
        # One shard's chunks are stored and no row says so.
        KillPoint("mloc_dagster.index.lancedb:LancedbIndex.add", after=True),
        # All chunks are marked, and the version is not yet recorded.
        KillPoint("mloc_dagster.index.lancedb:version_rows"),
        KillPoint(ANSWERED, call=2, after=True),
    ),
    "pgvector": (
        # One shard is done; the vectors of the other one are computed and not stored.
        KillPoint("mloc_dagster.index.pgvector:PgvectorIndex.add", call=2),
        # All statements are done, and nothing is committed.
        KillPoint("mloc_dagster.index.pgvector:_publish", after=True),
    ),
}
"""Where a task is killed, one after the other; each place is beyond the one before."""

EMBEDDED = {"lancedb": [0, 0, 1, 1], "pgvector": [1, 1, 1, 1]}
"""Chunks of each page that were computed by the attempt that finished its row: what is stored is
not computed again."""


def template(folder: Path, index: dict[str, str]) -> dict[str, Any]:
    turn = {"text": "So the first passage says [1]."}
    return {
        "apiVersion": "mloc/v1",
        "kind": "RetrievalTask",
        "metadata": {"name": index["name"].partition("-")[0]},
        "spec": {
            "taskType": "rag",
            "enforce_cpu": True,
            "parallel": {"max_shards": 2},
            "data": {"type": "list", "items": list(QUESTIONS)},
            "corpus": {"source": {"url": f"{folder}/docs/*"}},
            "index": index,
            "embedding": {"model": {"source": {"type": "builtin", "identifier": "tiny-embed"}}},
            "search": {"mode": "hybrid", "top_k": 2},
            "generate": {
                "model": {
                    "source": {"type": "builtin", "identifier": "tiny-chat"},
                    "engine": "scripted",
                    "scripted": {"turns": [turn]},
                }
            },
        },
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for name, text in PAGES.items():
        (tmp_path / "docs" / f"{name}.md").write_text(f"# {name.title()}\n\n{text}\n")
    return tmp_path


_ATTEMPTS = ("task_id", "worker", "attempt", "latency_s", "engine_s", "saved_s")
"""Columns that say which process computed a row, and how long that took."""


def tables(outcome: Any) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each task's Parquet, without what differs from one run to another."""
    assert outcome.succeeded, outcome.failures
    found: dict[str, list[dict[str, Any]]] = {}
    for each in outcome.tasks:
        task = open_store().task(each.task_id)
        assert verify_manifest(task) == ()
        with task.open("responses.parquet") as file:
            rows = pq.read_table(file).drop_columns(list(_ATTEMPTS)).to_pylist()
        found[each.node] = rows
    return found


def stored(index: Mapping[str, str]) -> list[Passage]:
    """Returns the chunks of an index that has one version."""
    with closing(open_index(Index.model_validate(index))) as opened:
        info = opened.info()
        assert info is not None
        assert [each.number for each in info.versions] == [1]
        return list(opened.texts(1))


@pytest.mark.parametrize("engine", list(KILLS))
def test_a_task_that_is_killed_again_and_again_leaves_the_same(
    engine: str, folder: Path, instance: dg.DagsterInstance, session_home: Path
) -> None:
    where = {"url": str(folder / "lance")} if engine == "lancedb" else {}
    indexes = [{"engine": engine, "name": f"{name}-{engine}", **where} for name in ("calm", "hit")]
    calm = tables(run_template(compile_mapping(template(folder, indexes[0])), instance))

    known = set(open_store().task_ids())
    (folder / "hit.yaml").write_text(json.dumps(template(folder, indexes[1])))
    environment = {**os.environ, "MLOC_HOME": str(session_home), "MLOC_FLUSH_ROWS": "1"}
    run_killed(["run", str(folder / "hit.yaml")], environment, folder / "log", KILLS[engine][0])
    compiled, workflow = resumable(
        next(each for each in open_store().task_ids() if each not in known)
    )
    for point in KILLS[engine][1:]:
        run_killed(["run", "--resume", workflow], environment, folder / "log", point)
    hit = tables(run_template(compiled, instance, workflow_id=workflow))

    # What an `index` row says of its attempt: how many chunks that one had to embed.
    computed = [(row.pop("output"), row.pop("prompt_tokens") > 0) for row in hit["hit-index"]]
    for row in calm["calm-index"]:
        del row["output"], row["prompt_tokens"]
    assert [text for text, _ in computed] == [f"1 chunk, {n} embedded" for n in EMBEDDED[engine]]
    assert [tokens for _, tokens in computed] == [n > 0 for n in EMBEDDED[engine]]
    assert list(hit.values()) == list(calm.values())
    assert stored(indexes[1]) == stored(indexes[0]) != []
