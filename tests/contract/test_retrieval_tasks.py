"""Index and retrieve tasks shard by shard, on a real index: what is embedded, published, found."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lancedb")

from mloc_dagster.data import spool_input
from mloc_dagster.errors import InputError, TaskCancelled, TerminalError, UnknownNameError
from mloc_dagster.executors import ModelCache, read_pinned, run_shard, search_index
from mloc_dagster.index import OpenIndex, index_folder, open_index
from mloc_dagster.planning import Plan, cut_shards
from mloc_dagster.results import (
    Folder,
    OutputRow,
    Passage,
    ShardWriter,
    aggregate_rows,
    open_store,
    read_rows,
)
from mloc_dagster.schema import Index, RowSpec, Search, find_task_type, spec_of

MODEL = {
    "source": {"type": "builtin", "identifier": "tiny-chat"},
    "engine": "transformers",
    "transformers": {"max_batch_size": 4},
}
OWLS = {
    "owls": ["Owls hunt at night.", "Owls live in old trees and barns.", "They eat mice."],
    "mice": ["Mice hide in the hay.", "A mouse eats grain."],
    "empty": [],
}


def chunks_of(document: str, texts: Sequence[str]) -> list[Passage]:
    return [
        Passage(f"{document}-{text}", text, document, 0, len(text), payload={"about": document})
        for text in texts
    ]


class Farm:
    """A store with an index, and tasks on it."""

    def __init__(self, root: Path, cache: ModelCache) -> None:
        self.store = open_store(str(root / "results"))
        self.index: dict[str, Any] = {
            "engine": "lancedb",
            "name": "farm",
            "url": str(root / "lance"),
        }
        self.told: dict[int, Mapping[str, int]] = {}
        self._cache = cache
        self._began = datetime.now(UTC)

    def open(self) -> OpenIndex:
        return open_index(Index.model_validate(self.index))

    def chunked(self, name: str, documents: Mapping[str, Sequence[str] | None]) -> Folder:
        """Returns the folder of a task that has cut documents; None of one that failed."""
        folder = self.store.task(name)
        rows = [
            OutputRow(place, document, error="no text", finish_reason="error")
            if texts is None
            else OutputRow(place, document, "cut", chunks=chunks_of(document, texts))
            for place, (document, texts) in enumerate(documents.items())
        ]
        (shard,) = cut_shards(name, len(rows), 1)
        with ShardWriter(folder, shard, 1, flush_rows=100, flush_interval_s=60) as writer:
            for row in rows:
                writer.write(row)
        return folder

    def spec(self, task_type: str, **given: Any) -> RowSpec:
        given = {"data": {"type": "upstream", "node": "chunks", "text": "{prompt}"}, **given}
        index = {**self.index, **given.pop("index", {})}
        return spec_of({"taskType": task_type, "model": MODEL, "index": index, **given})

    def plan(
        self, name: str, spec: RowSpec, upstream: Mapping[str, Folder], shards: int = 1
    ) -> tuple[Folder, Plan]:
        folder = self.store.task(name)
        prepare = find_task_type(spec.task_type).prepare
        if prepare is not None:
            prepare(spec, folder, upstream)
        return folder, spool_input(name, spec.data, folder, shards, 7, upstream, takes=spec.takes)

    def compute(self, folder: Folder, spec: RowSpec, plan: Plan) -> list[OutputRow]:
        for shard in plan.shards:
            run_shard(
                *(folder, plan.task_id, spec, plan, shard),
                attempt=1,
                cache=self._cache,
                cancelled=lambda: False,
                on_counts=partial(self.told.__setitem__, shard.index),
            )
        return list(read_rows(folder))

    def aggregate(self, folder: Folder, spec: RowSpec, plan: Plan) -> dict[str, Any]:
        found = find_task_type(spec.task_type)
        conclude = found.conclude
        assert conclude is not None
        assert found.report is not None
        aggregate_rows(
            *(folder, plan),
            model="tiny-chat",
            worker_id="w",
            started_at=self._began,
            error_budget=spec.error_budget,
            report=found.report(spec),
            conclude=lambda: conclude(spec, folder, plan),
        )
        return json.loads(folder.read_bytes("responses.json"))["result"]

    def build(
        self, name: str, documents: Mapping[str, Sequence[str] | None], **given: Any
    ) -> dict[str, Any]:
        """Indexes documents; returns the result with `embedded`, over all of them."""
        spec = self.spec("index", **given)
        folder, plan = self.plan(name, spec, {"chunks": self.chunked(f"{name}-c", documents)}, 2)
        rows = self.compute(folder, spec, plan)
        embedded = sum((row.counts or {}).get("embedded_chunks", 0) for row in rows)
        return {**self.aggregate(folder, spec, plan), "embedded": embedded, "rows": rows}

    def found(self, name: str, queries: Sequence[str], **given: Any) -> list[list[Passage]]:
        shards = given.pop("shards", 1)
        spec = self.spec("retrieve", data={"type": "list", "items": list(queries)}, **given)
        folder, plan = self.plan(name, spec, {}, shards)
        return [row.retrieved or [] for row in self.compute(folder, spec, plan)]


@pytest.fixture(scope="module")
def cache() -> Iterator[ModelCache]:
    cache = ModelCache(4 << 30)
    yield cache
    cache.clear()


@pytest.fixture
def farm(tmp_path: Path, cache: ModelCache) -> Farm:
    return Farm(tmp_path, cache)


def test_only_what_is_new_is_embedded_and_what_has_vanished_leaves(farm: Farm) -> None:
    first = farm.build("one", {**OWLS, "bad": None})
    assert first["index"] == {"engine": "lancedb", "name": "farm", "version": 1, "chunks": 5}
    assert first["embedded"] == 5
    assert [row.error is not None for row in first["rows"]] == [False, False, False, True]
    assert first["rows"][3].fault == "upstream"
    assert first["ok"]

    same = farm.build("two", OWLS)
    assert same["embedded"] == 0
    assert same["index"]["version"] == 1  # nothing has changed: no version of its own

    changed = {**OWLS, "mice": ["Mice hide in the hay.", "Mice fear owls."]}
    third = farm.build("three", changed)
    assert third["embedded"] == 1
    assert [
        sum(each[name] for each in farm.told.values()) for name in find_task_type("index").counts
    ] == [5, 1]
    assert third["index"] == {"engine": "lancedb", "name": "farm", "version": 2, "chunks": 5}
    pinned = read_pinned(farm.store.task("three"))
    assert pinned is not None
    assert pinned.removed == 1
    ((best, *_),) = farm.found("q", ["A mouse eats grain."])
    assert best.text != "A mouse eats grain."


def test_a_version_is_published_once_however_often_its_task_is_aggregated(farm: Farm) -> None:
    spec = farm.spec("index")
    folder, plan = farm.plan("t", spec, {"chunks": farm.chunked("c", OWLS)})
    farm.compute(folder, spec, plan)
    first = farm.aggregate(folder, spec, plan)
    assert farm.aggregate(folder, spec, plan) == first
    folder.delete("responses.json")  # whoever aggregated was killed before it was written
    folder.delete("index.json")
    assert farm.aggregate(folder, spec, plan)["index"] == first["index"]
    info = farm.open().info()
    assert info is not None
    assert [each.number for each in info.versions] == [1]
    other = farm.build("other", {"owls": ["Owls."]})
    assert other["index"]["version"] == 2
    folder.delete("responses.json")
    assert farm.aggregate(folder, spec, plan)["index"] == first["index"]


def test_nothing_is_published_before_all_rows_are_there(farm: Farm) -> None:
    farm.build("one", OWLS)
    spec = farm.spec("index")
    more = {**OWLS, "cats": ["Cats hunt mice."], "dogs": ["Dogs bark."]}
    folder, plan = farm.plan("two", spec, {"chunks": farm.chunked("c", more)})
    stop = iter([False])
    with pytest.raises(TaskCancelled):
        run_shard(
            *(folder, "two", spec, plan, plan.shards[0]),
            attempt=1,
            cache=farm._cache,
            cancelled=lambda: next(stop, True),
        )
    info = farm.open().info()
    assert info is not None
    assert [each.number for each in info.versions] == [1]
    (found,) = farm.found("q", ["Dogs bark."])
    assert "Dogs bark." not in [each.text for each in found]
    farm.compute(folder, spec, plan)
    assert farm.aggregate(folder, spec, plan)["index"]["version"] == 2


def test_a_search_keeps_to_its_version(farm: Farm) -> None:
    farm.build("one", OWLS)
    spec = farm.spec("retrieve", data={"type": "list", "items": ["Dogs bark.", "They eat mice."]})
    folder, plan = farm.plan("q", spec, {}, 2)
    farm.build("two", {**OWLS, "dogs": ["Dogs bark."]})
    rows = farm.compute(folder, spec, plan)
    assert all("Dogs bark." not in [each.text for each in row.retrieved or ()] for row in rows)
    assert (rows[1].retrieved or [])[0].text == rows[1].output == "They eat mice."
    result = farm.aggregate(folder, spec, plan)
    assert result["index"] == {"engine": "lancedb", "name": "farm", "version": 1, "chunks": 5}
    assert result["usage"]["num_queries"] == 2
    assert result["usage"]["total_results"] == 10
    assert result["queries"][1]["items"][0]["payload"]["about"] == "owls"
    ((best, *_),) = farm.found("again", ["Dogs bark."])
    assert best.text == "Dogs bark."


def test_a_search_waits_for_the_version_of_the_task_before_it(farm: Farm) -> None:
    farm.build("one", OWLS)
    farm.build("two", {"dogs": ["Dogs bark."]})
    spec = farm.spec("retrieve", data={"type": "list", "items": ["x"]})
    folder, _ = farm.plan("q", spec, {"index": farm.store.task("one")})
    pinned = read_pinned(folder)
    assert pinned is not None
    assert pinned.version == 1


def test_a_version_that_is_gone_ends_the_task(farm: Farm) -> None:
    farm.build("one", OWLS)
    spec = farm.spec("retrieve", data={"type": "list", "items": ["x"]})
    folder, plan = farm.plan("q", spec, {})
    farm.build("two", {"dogs": ["Dogs bark."]}, index={"keep_versions": 1})
    with pytest.raises(TerminalError, match=r"version 1 of the index 'farm'.*keep_versions"):
        farm.compute(folder, spec, plan)


def test_what_is_found_does_not_depend_on_the_number_of_shards(farm: Farm) -> None:
    farm.build("one", OWLS)
    queries = [f"{word} {place}" for place in range(6) for word in ("owl", "a mouse eats")]
    one, three = (
        farm.found(f"q{shards}", queries, shards=shards, search={"top_k": 3}) for shards in (1, 3)
    )
    assert [[each.id for each in row] for row in one] == [
        [each.id for each in row] for row in three
    ]
    assert {len(row) for row in one} == {3}


def test_filters_and_numbers_of_passages(farm: Farm) -> None:
    farm.build("one", OWLS)
    (found,) = farm.found("q", ["owls"], search={"filter": {"about": "mice"}, "top_k": 4})
    assert {each.document for each in found} == {"mice"}
    (many,) = farm.found("r", ["owls"], search={"candidates": 4, "top_k": 1}, passages="candidates")
    assert len(many) == 4
    scores = [each.score or 0 for each in many]
    assert scores == sorted(scores, reverse=True)
    assert all(each.score == each.dense for each in many)


def test_another_model_is_refused(farm: Farm) -> None:
    farm.build("one", OWLS, pooling={"instruction": "text: "})
    farm.found("q", ["x"], pooling={"instruction": "query: "})  # of queries that is as it should be
    with pytest.raises(InputError, match=r"tiny-chat@\w+.* pooling_type=MEAN"):
        farm.found("r", ["x"], pooling={"pooling_type": "MEAN"})
    with pytest.raises(InputError, match="instruction"):
        farm.build("two", {"dogs": ["Dogs bark."]})


def test_a_chunk_that_cannot_be_embedded_is_the_error_of_its_document(farm: Farm) -> None:
    long = {"long": ["Fine.", "a " * 3000], "good": ["Good."]}
    result = farm.build("one", long, pooling={"error_budget": 0.5})
    assert "reads at most 1024" in result["rows"][0].error
    assert result["index"]["chunks"] == 1


def test_an_index_is_looked_for_before_anything_runs(farm: Farm) -> None:
    spec = farm.spec("retrieve", data={"type": "list", "items": ["x"]})
    look = find_task_type("retrieve").check
    assert look is not None
    with pytest.raises(UnknownNameError, match="unknown index 'farm'"):
        look(spec, [])
    look(spec, [farm.spec("index")])  # which will be there
    farm.build("one", OWLS)
    look(spec, [])
    cut = farm.spec("retrieve", data=spec.data.model_dump(), pooling={"dimensions": 64})
    with pytest.raises(InputError, match="128 numbers, and those of 'tiny-chat' have 64"):
        look(cut, [])


def test_chunks_that_the_model_cannot_read_are_found_before_anything_runs(farm: Farm) -> None:
    look = find_task_type("index").check
    assert look is not None
    chunks = {"taskType": "chunk", "data": {"type": "dataset", "url": "docs/*.md"}}
    tokenizer = {"type": "builtin", "identifier": "tiny-embed"}  # it reads 512, with two of its own
    cut = [
        spec_of({**chunks, "chunk": {"size": size, "tokenizer": tokenizer}}) for size in (510, 511)
    ]
    model = {"source": tokenizer}
    look(farm.spec("index", model=model), cut[:1])
    with pytest.raises(InputError, match="at most 512: give a size of at most 510"):
        look(farm.spec("index", model=model), cut)
    look(farm.spec("index", model=model, pooling={"truncate": True}), cut)


def test_an_index_is_searched_by_its_name_as_its_chunks_were_embedded(farm: Farm) -> None:
    instructions = {"pooling": {"instruction": "text: "}, "query_instruction": "query: "}
    farm.build("one", OWLS, **instructions)
    farm.build("two", {**OWLS, "dogs": ["Dogs bark."]}, **instructions)
    for name in ("one", "two"):  # what is known of the model lies beside the index
        farm.store.task(name).delete("task.json")
    index = Index.model_validate(farm.index)
    (asked,) = farm.found("q", ["They eat mice."], pooling={"instruction": "query: "})
    (named,) = search_index(index, Search(), ["They eat mice."])
    assert [(each.id, each.score) for each in named] == [(each.id, each.score) for each in asked]

    ((best, *_),) = search_index(index, Search(mode="keyword"), ["what do dogs do"])
    assert (best.text, best.document) == ("Dogs bark.", "dogs")
    (before,) = search_index(index, Search(mode="keyword", version=1), ["what do dogs do"])
    assert before == []
    with pytest.raises(InputError, match="no version 7; it has the versions: 1, 2"):
        search_index(index, Search(version=7), ["x"])


def test_an_index_of_which_nobody_knows_the_model_is_searched_by_words(farm: Farm) -> None:
    farm.build("one", OWLS)
    index = Index.model_validate(farm.index)
    folder = index_folder(index, "model")
    for name in folder.list():
        folder.delete(name)
    with pytest.raises(InputError, match=r"nothing tells which model.*mode keyword"):
        search_index(index, Search(), ["mice"])
    (found,) = search_index(index, Search(mode="keyword"), ["mice"])
    assert found
