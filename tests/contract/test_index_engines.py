"""One suite for every engine of indexes: PostgreSQL with pgvector, LanceDB, Qdrant."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy.engine import make_url

from mloc_dagster.errors import DataError, InputError
from mloc_dagster.home import postgres_url
from mloc_dagster.index import (
    IndexInfo,
    IndexVersion,
    OpenIndex,
    fits,
    list_indexes,
    open_index,
)
from mloc_dagster.results import Passage
from mloc_dagster.schema import FilterValue, Index, Range
from mloc_dagster.settings import settings

np = pytest.importorskip("numpy")

MakeIndex = Callable[..., Index]

ENGINES = ("pgvector", "lancedb", "qdrant")
"""The engines under test."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty PostgreSQL, which stops when this process ends."""
    with tempfile.TemporaryDirectory(prefix="mloc-") as home, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOC_HOME", home)
        settings.cache_clear()
        url = postgres_url()
        settings.cache_clear()
        patch.undo()
        yield url


@pytest.fixture
def own_postgres(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes that PostgreSQL mloc's own."""
    monkeypatch.setenv("MLOC_POSTGRES_URL", postgres)
    settings.cache_clear()


@pytest.fixture(params=ENGINES)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeIndex:
    engine: str = request.param
    if engine != "pgvector":
        pytest.importorskip({"lancedb": "lancedb", "qdrant": "qdrant_client"}[engine])
    # What builds of other engines wait for is a lock of mloc's own PostgreSQL.
    request.getfixturevalue("own_postgres")
    url = str(tmp_path / "lance")
    if engine == "qdrant":
        url = f"path:{tmp_path}/qdrant"
    if engine == "pgvector":
        url = request.getfixturevalue("postgres")

    def _index(**fields: Any) -> Index:
        return Index.model_validate({"engine": engine, "name": "handbook", "url": url, **fields})

    return _index


@pytest.fixture
def index(make: MakeIndex) -> Iterator[OpenIndex]:
    with closing(open_index(make())) as index:
        index.create(3, "tiny@1")
        yield index
        index.drop()


def _chunks(*ids: str, **fields: Any) -> list[Passage]:
    return [
        Passage(
            id=id,
            text=f"text of {id}",
            document=f"{id}.md",
            start=number,
            end=number + 10,
            page=number + 1,
            heading=["Guide", f"Part {id}"],
            payload={"number": number, "name": id},
            **fields,
        )
        for number, id in enumerate(ids)
    ]


def _vectors(count: int, dimension: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype("float32")


def _fill(index: OpenIndex, *ids: str, build: str = "build-1") -> int:
    index.add(_chunks(*ids), _vectors(len(ids)))
    return index.publish(build, ids).number


def _found(index: OpenIndex, version: int | None, k: int = 100, **filter: FilterValue) -> list[str]:
    (hits,) = index.search(version, np.ones((1, 3), "float32"), k, filter)
    return [hit.passage.id for hit in hits]


# Adding and publishing


def test_an_index_that_nobody_made_is_none(make: MakeIndex) -> None:
    with closing(open_index(make())) as index:
        assert index.info() is None
        with pytest.raises(DataError, match="handbook"):
            index.known(["a"])


def test_a_published_chunk_comes_back_whole(index: OpenIndex) -> None:
    chunks = _chunks("a", "b")
    index.add(chunks, np.eye(3, dtype="float32")[:2])
    version = index.publish("build-1", ["a", "b"])
    (hits,) = index.search(version.number, np.array([[1, 0, 0]], "float32"), 2, {})
    assert [hit.passage for hit in hits] == chunks
    assert index.fetch(1, ["b", "missing"]) == {"b": chunks[1]}
    assert list(index.texts(1)) == chunks
    info = index.info()
    assert info is not None
    assert (info.name, info.dimension, info.metric, info.model) == (
        "handbook",
        3,
        "cosine",
        "tiny@1",
    )
    assert (info.versions, info.chunks) == ((version,), 2)
    assert (version.number, version.chunks, version.build) == (1, 2, "build-1")


def test_awkward_texts_come_back_as_they_were(index: OpenIndex) -> None:
    texts = [
        'it\'s "quoted"',
        "tab\tnew\nline \\ back\\nslash \\.",
        "",
        "中文 é 🎉",
        "%s {x} $1 --;",
    ]
    chunks = [
        Passage(
            id=f"id'{n}", text=text, document=text, payload={text or "empty": [text, None, 1.5]}
        )
        for n, text in enumerate(texts)
    ]
    index.add(chunks, _vectors(len(chunks)))
    index.publish("b", [each.id for each in chunks])
    assert index.fetch(1, [each.id for each in chunks]) == {each.id: each for each in chunks}
    assert index.known(["id'0", "id'9"]) == {"id'0"}


def test_chunks_that_are_not_published_are_invisible(index: OpenIndex) -> None:
    _fill(index, "a", "b")
    index.add(_chunks("c"), _vectors(1))
    assert index.known(["a", "c", "d"]) == {"a", "c"}
    assert sorted(_found(index, 1)) == ["a", "b"]
    assert index.fetch(1, ["c"]) == {}
    assert set(index.matching(1, {"name": ("a", "c")})) == {"a"}


def test_adding_twice_changes_nothing(index: OpenIndex) -> None:
    index.add(_chunks("a", "b", "a"), _vectors(3))
    index.add(_chunks("b", "c"), _vectors(2, seed=1))
    index.add([], np.zeros((0, 3), "float32"))
    assert index.publish("build-1", ["a", "b", "c"]).chunks == 3
    index.add(_chunks("a", "b", "c"), _vectors(3, seed=2))
    assert sorted(_found(index, 1)) == ["a", "b", "c"]
    index.publish("build-2", ["a", "b", "c"])
    assert sorted(_found(index, 2)) == ["a", "b", "c"]


def test_the_same_build_publishes_once(index: OpenIndex) -> None:
    _fill(index, "a", "b")
    first = index.publish("build-1", ["a", "b"])
    index.add(_chunks("c"), _vectors(1))
    assert index.publish("build-1", ["a", "b", "c"]) == first
    info = index.info()
    assert info is not None
    assert info.versions == (first,)


def test_a_chunk_without_a_vector_is_not_published(index: OpenIndex) -> None:
    _fill(index, "a")
    with pytest.raises(DataError, match="missing-chunk"):
        index.publish("build-2", ["a", "missing-chunk"])
    assert _found(index, 1) == ["a"]
    info = index.info()
    assert info is not None
    assert len(info.versions) == 1


def test_an_empty_version_holds_nothing(index: OpenIndex) -> None:
    _fill(index, "a")
    assert index.publish("build-2", []).chunks == 0
    assert (_found(index, 1), _found(index, 2)) == (["a"], [])
    assert list(index.texts(2)) == []


# Versions


def test_a_version_stays_what_it_was(index: OpenIndex) -> None:
    _fill(index, "a", "b", "c")
    index.add(_chunks("d"), _vectors(1, seed=4))
    index.publish("build-2", ["a", "d"])
    index.publish("build-3", ["a", "b"])  # b comes back
    assert sorted(_found(index, 1)) == ["a", "b", "c"]
    assert sorted(_found(index, 2)) == ["a", "d"]
    assert sorted(_found(index, 3)) == ["a", "b"]
    assert [each.id for each in index.texts(3)] == ["a", "b"]
    assert sorted(index.fetch(2, ["a", "b", "d"])) == ["a", "d"]
    assert index.known(["a", "b", "c", "d"]) == {"a", "b", "c", "d"}


def test_pruning_removes_old_versions_and_what_only_they_had(index: OpenIndex) -> None:
    _fill(index, "a", "b")
    index.add(_chunks("c", "staged"), _vectors(2))
    index.publish("build-2", ["b", "c"])
    index.publish("build-3", ["c"])
    index.prune(2)
    info = index.info()
    assert info is not None
    assert [each.number for each in info.versions] == [2, 3]
    assert (sorted(_found(index, 2)), _found(index, 3)) == (["b", "c"], ["c"])
    assert index.known(["a", "b", "c", "staged"]) == {"b", "c", "staged"}
    with pytest.raises(DataError, match="no version 1; it has: 2, 3"):
        _found(index, 1)
    _fill(index, "a", build="build-4")
    assert _found(index, 4) == ["a"]


def test_a_reader_sees_a_version_whole_or_not_at_all(make: MakeIndex, index: OpenIndex) -> None:
    if make().engine == "qdrant":
        pytest.skip("Qdrant's local mode is for one thread")
    groups = [[f"{letter}{n}" for n in range(20)] for letter in "abc"]
    for group in groups:
        index.add(_chunks(*group), _vectors(20))
    index.publish("build-0", groups[0])
    done = threading.Event()
    seen: list[tuple[int, list[str]]] = []

    def _read() -> None:
        with closing(open_index(make())) as reader:
            while not done.is_set():
                info = reader.info()
                assert info is not None
                newest = info.versions[-1].number
                seen.append((newest, _found(reader, newest)))

    reader = threading.Thread(target=_read)
    reader.start()
    try:
        for number in range(1, 6):
            index.publish(f"build-{number}", groups[number % 3])
    finally:
        done.set()
        reader.join()
    for number, found in seen:
        assert sorted(found) == sorted(groups[(number - 1) % 3])


def test_builds_at_the_same_time_make_a_version_each(make: MakeIndex) -> None:
    if make().engine == "qdrant":
        pytest.skip("Qdrant's local mode is for one thread")
    shared = [f"s{n}" for n in range(20)]
    wanted = {build: [*shared, *(f"{build}{n}" for n in range(10))] for build in "abcd"}
    together = threading.Barrier(len(wanted))
    published: dict[int, str] = {}

    def build(name: str) -> None:
        with closing(open_index(make())) as index:
            together.wait()
            index.create(3, "tiny@1")
            for start in range(0, 30, 5):
                some = wanted[name][start : start + 5]
                together.wait()
                index.add(_chunks(*some), np.ones((5, 3), "float32"))
            published[index.publish(name, wanted[name]).number] = name
            index.prune(len(wanted))

    with ThreadPoolExecutor(len(wanted)) as threads:
        list(threads.map(build, wanted))
    with closing(open_index(make())) as index:
        info = index.info()
        assert info is not None
        assert [each.number for each in info.versions] == sorted(published) == [1, 2, 3, 4]
        for number, name in published.items():
            assert sorted(_found(index, number)) == sorted(wanted[name])
            assert [each.id for each in index.texts(number)] == sorted(wanted[name])
        index.drop()


def test_an_index_lies_in_a_bucket(s3_url: str, own_postgres: None) -> None:
    pytest.importorskip("lancedb")
    with closing(open_index(Index(engine="lancedb", name="handbook", url=s3_url))) as index:
        index.create(3, "tiny@1")
        _fill(index, "a", "b")
        index.add(_chunks("c"), _vectors(1))
        assert index.known(["a", "c", "d"]) == {"a", "c"}
        index.publish("build-2", ["a", "c"])
        assert (sorted(_found(index, 1)), sorted(_found(index, 2))) == (["a", "b"], ["a", "c"])
        index.prune(1)
        assert index.fetch(2, ["a", "c"]) == {each.id: each for each in index.texts(2)}
        index.drop()
        assert index.info() is None


# Searching


@pytest.mark.parametrize("metric", ["cosine", "dot", "l2"])
def test_the_nearest_come_first_with_the_metrics_score(make: MakeIndex, metric: str) -> None:
    vectors, queries = _vectors(30), _vectors(2, seed=1)
    ids = [f"c{n:02}" for n in range(30)]
    with closing(open_index(make(metric=metric))) as index:
        index.create(3, "")
        index.add(_chunks(*ids), vectors)
        index.publish("b", ids)
        found = index.search(1, queries, 5, {})
        index.drop()
    for query, hits in zip(queries, found, strict=True):
        scores = _scores(metric, vectors, query)
        order = np.argsort(-scores)[:5]
        assert [hit.passage.id for hit in hits] == [ids[place] for place in order]
        assert [hit.score for hit in hits] == pytest.approx(list(scores[order]), abs=1e-4)


def _scores(metric: str, vectors: Any, query: Any) -> Any:
    if metric == "l2":
        return -np.linalg.norm(vectors - query, axis=1)
    dots = vectors @ query
    if metric == "dot":
        return dots
    return dots / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)


def test_of_many_vectors_nearly_all_of_the_nearest_are_found(make: MakeIndex) -> None:
    # Qdrant's local mode writes each point to the disk by itself.
    count, asked = (300, 4) if make().engine == "qdrant" else (2_000, 50)
    vectors, queries = _vectors(count, 32), _vectors(asked, 32, seed=1)
    ids = [f"c{n:04}" for n in range(count)]
    chunks = [Passage(id=id, payload={"n": n}) for n, id in enumerate(ids)]
    with closing(open_index(make())) as index:
        index.create(32, "")
        for start in range(0, count, 500):
            index.add(chunks[start : start + 500], vectors[start : start + 500])
        index.publish("b", ids)
        found = index.search(1, queries, 10, {})
        few = index.search(1, queries, 10, {"n": Range(gte=count - 10)})
        half = index.search(1, queries, 100, {"n": Range(lt=count // 2)})
        index.drop()
    right = 0
    for query, hits in zip(queries, found, strict=True):
        best = np.argsort(-_scores("cosine", vectors, query))[:10]
        right += len({ids[n] for n in best} & {hit.passage.id for hit in hits})
    assert right / (10 * asked) >= 0.95
    # However few of the nearest fit, there are as many as were asked for.
    assert {len(hits) for hits in few} == {10}
    assert {len(hits) for hits in half} == {100}


def test_no_queries_find_nothing(index: OpenIndex) -> None:
    _fill(index, "a")
    assert index.search(1, np.zeros((0, 3), "float32"), 5, {}) == []


# Filters

_PAYLOADS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "empty": {},
    "zh": {"lang": "zh", "year": 2020, "draft": False},
    "en": {"lang": "en", "year": 2021.5, "draft": True},
    "text year": {"lang": "en", "year": "2020", "draft": "true"},
    "number draft": {"draft": 1, "year": True, "lang": None},
    "tags": {"lang": ["zh", "de"], "year": [1999, "x", 2022]},
    "unicode": {"lang": "中文", "kéy 🎉": 'it\'s "x"'},
    "injection": {"lang": "' OR 1=1 --", "a\"b'c": 1, "a.b": 2, "year": -1},
    "nested": {"lang": {"zh": 1}, "a": {"b": 2}},
}

_FILTERS: list[dict[str, FilterValue]] = [
    {},
    {"lang": "zh"},
    {"lang": ("zh", "en")},
    {"lang": ("zh", 2020, True)},
    {"lang": ()},
    {"lang": "zh", "year": 2020},
    {"year": 2020},
    {"year": 2020.0},
    {"year": 2021.5},
    {"year": "2020"},
    {"year": True},
    {"draft": True},
    {"draft": 1},
    {"draft": ("true", False)},
    {"year": Range(gte=2020)},
    {"year": Range(gt=2020, lt=2022)},
    {"year": Range(lte=2020)},
    {"year": Range(gte="2")},
    {"lang": Range(gt="en")},
    {"lang": Range(gte="en", lte="zh")},
    {"lang": Range(ne="zh")},
    {"year": Range(ne=2020)},
    {"draft": Range(ne=True)},
    {"year": Range(gte=2000, ne=2020)},
    {"lang": Range()},
    {"missing": "x"},
    {"missing": Range(ne="x")},
    {"missing": Range(lt=3)},
    {"lang": "中文"},
    {"kéy 🎉": 'it\'s "x"'},
    {"lang": "' OR 1=1 --"},
    {"a\"b'c": 1},
    {"a.b": 2},
    {"x' OR '1'='1": "x"},
    {'x" || true || "': "x"},
    {"lang": "%s %(v0)s $v0"},
]


@pytest.fixture(scope="module")
def described() -> Sequence[Passage]:
    return [Passage(id=id, text=id, payload=payload) for id, payload in _PAYLOADS.items()]


def test_filters_mean_the_same_on_every_engine(
    index: OpenIndex, described: Sequence[Passage]
) -> None:
    index.add(described, _vectors(len(described)))
    index.publish("b", [each.id for each in described])
    for filter in _FILTERS:
        fitting = sorted(each.id for each in described if fits(each.payload, filter))
        assert sorted(_found(index, 1, **filter)) == fitting, filter
        assert sorted(index.matching(1, filter)) == fitting, filter


# Refusals


@pytest.mark.parametrize(
    ("changes", "dimension", "model", "message"),
    [
        ({}, 4, "tiny@1", "dimension 3, not 4"),
        ({}, 3, "tiny@2", "model 'tiny@1', not 'tiny@2'"),
        ({"metric": "l2"}, 3, "tiny@1", "metric 'cosine', not 'l2'"),
    ],
)
def test_an_index_that_is_another_is_refused(
    make: MakeIndex,
    index: OpenIndex,
    changes: dict[str, str],
    dimension: int,
    model: str,
    message: str,
) -> None:
    index.create(3, "tiny@1")
    with (
        closing(open_index(make(**changes))) as other,
        pytest.raises(InputError, match=message) as refused,
    ):
        other.create(dimension, model)
    assert "handbook" in str(refused.value)


def test_vectors_that_do_not_fit_are_refused(index: OpenIndex) -> None:
    with pytest.raises(DataError, match="shape"):
        index.add(_chunks("a"), _vectors(1, 4))
    with pytest.raises(DataError, match="shape"):
        index.add(_chunks("a"), _vectors(2))
    with pytest.raises(DataError, match="finite"):
        index.add(_chunks("a"), np.full((1, 3), np.nan))
    _fill(index, "a")
    with pytest.raises(DataError, match="shape"):
        index.search(1, _vectors(1, 4), 1, {})


def test_a_dropped_index_is_gone(make: MakeIndex, index: OpenIndex) -> None:
    _fill(index, "a")
    index.drop()
    assert index.info() is None
    index.drop()
    index.create(4, "another")
    with closing(open_index(make())) as again:
        info = again.info()
    assert info is not None
    assert (info.dimension, info.versions, info.chunks) == (4, (), 0)


def test_a_collection_that_others_wrote_is_searched_and_not_changed(tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    index = Index(engine="qdrant", name="others", url=f"path:{tmp_path}/qdrant")
    with closing(open_index(index)) as opened:
        client = opened._client  # type: ignore[attr-defined]
        vectors = qdrant.models.VectorParams(size=3, distance=qdrant.models.Distance.COSINE)
        client.create_collection("others", vectors_config=vectors)
        payloads = [{"page_content": "one", "lang": "en"}, {"content": "two", "lang": "zh"}]
        points = [
            qdrant.models.PointStruct(id=n, vector=[1.0, n, 0.0], payload=payload)
            for n, payload in enumerate(payloads)
        ]
        client.upsert("others", points)
        info = opened.info()
        assert info is not None
        assert (info.dimension, info.versions, info.chunks) == (3, (), 2)
        (hits,) = opened.search(None, np.array([[1, 0, 0]], "float32"), 5, {})
        assert [hit.passage.text for hit in hits] == ["one", "two"]
        assert hits[0].passage.payload == payloads[0]
        assert _found(opened, None, lang="zh") == ["1"]
        with pytest.raises(InputError, match="did not write"):
            opened.create(3, "")


def test_indexes_that_mloc_keeps_are_listed(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A database of its own: in the other one somebody else owns what indexes share.
    with closing(psycopg2.connect(postgres.replace("+psycopg2", ""))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE of_mloc")
    own = make_url(postgres).set(database="of_mloc").render_as_string(hide_password=False)
    monkeypatch.setenv("MLOC_POSTGRES_URL", own)
    settings.cache_clear()
    with closing(open_index(Index(name="listed"))) as index:
        index.create(3, "")
        assert "listed" in [each.name for each in list_indexes() if each.engine == "pgvector"]
        version: IndexVersion = index.publish("build-1", [])
        info: IndexInfo | None = index.info()
        assert info is not None
        assert info.versions == (version,)
        index.drop()
    assert "listed" not in [each.name for each in list_indexes()]
