"""Vectors for real: both engines side by side, and a task's vectors out of its Parquet file."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("torch")

from mloc_dagster.executors import Completion, PoolingEngine, VllmPoolingEngine, vllm_build
from mloc_dagster.executors.engines.transformers import pooling as transformers_pooling
from mloc_dagster.schema import Pooling
from tests.e2e.conftest import ROOT
from tests.e2e.test_cli_run import Place
from tests.unit.executors.test_pooling import TEXTS, embedding, spec, vectors

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or vllm_build() != "cpu",
    reason="needs vLLM's CPU build",
)

TINY = {"type": "builtin", "identifier": "tiny-chat"}
WIDTH = 128
MANY = [*TEXTS, "Wie heißt die Hauptstadt? 東京 🎉", *(f"{'one ' * n}end" for n in range(60))]
SIMILAR = 0.999


@pytest.fixture(scope="session")
def vllm() -> Iterator[VllmPoolingEngine]:
    from mloc_dagster.executors.engines.vllm import pooling as vllm_pooling

    options = {"kv_cache_memory_bytes": 256 << 20, "max_num_seqs": 16}
    given = spec(TINY).model_dump(mode="json", by_alias=True, exclude_unset=True)
    given["model"]["vllm"] = {**given["model"].get("vllm", {}), **options}
    engine = vllm_pooling.load_engine(type(spec(TINY)).model_validate(given))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def transformers() -> Iterator[PoolingEngine]:
    engine = transformers_pooling.load_engine(spec(TINY, max_batch_size=8))
    yield engine
    engine.close()


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))


@needs_vllm
@pytest.mark.parametrize(
    "pooling",
    [
        Pooling(),
        Pooling(normalize=False, dimensions=16),
        Pooling(instruction="query: ", pooling_type="LAST"),
    ],
    ids=["default", "cut", "instruction"],
)
def test_engines_agree(
    vllm: VllmPoolingEngine, transformers: PoolingEngine, pooling: Pooling
) -> None:
    theirs, ours = vectors(vllm, MANY, pooling), vectors(transformers, MANY, pooling)
    assert theirs.keys() == ours.keys() == set(range(len(MANY)))
    for index in ours:
        one, other = embedding(theirs[index]), embedding(ours[index])
        assert len(one) == len(other) == (pooling.dimensions or WIDTH)
        assert cosine(one, other) >= SIMILAR
        assert math.hypot(*one) == pytest.approx(math.hypot(*other), rel=1e-3)
        if pooling.normalize:
            assert math.hypot(*one) == pytest.approx(1, abs=1e-5)


@needs_vllm
def test_engines_count_the_same_tokens_and_refuse_the_same_texts(
    vllm: VllmPoolingEngine, transformers: PoolingEngine
) -> None:
    texts = ["Paris", "a " * 3000, "hot and cold", ""]
    theirs, ours = vectors(vllm, texts), vectors(transformers, texts)
    assert theirs[1] == ours[1]
    assert theirs[3] == ours[3] == "the text is empty: it has no token to make a vector of"
    assert "tokens, and tiny-chat reads at most 1024; pooling.truncate" in str(ours[1])
    for index in (0, 2):
        one, other = theirs[index], ours[index]
        assert isinstance(one, Completion)
        assert isinstance(other, Completion)
        assert one.prompt_tokens == other.prompt_tokens > 0
    cut = Pooling(truncate=True)
    one, other = vectors(vllm, texts, cut)[1], vectors(transformers, texts, cut)[1]
    assert cosine(embedding(one), embedding(other)) >= SIMILAR
    wide = Pooling(dimensions=999)
    assert vectors(vllm, ["x"], wide) == vectors(transformers, ["x"], wide)


@needs_vllm
def test_vllm_pools_a_whole_task_one_way_and_says_so(vllm: VllmPoolingEngine) -> None:
    found = vectors(vllm, ["x"], Pooling(pooling_type="MEAN"))[0]
    assert found == ("pooling_type MEAN for one row: vLLM pools the whole task by LAST")


def test_a_task_leaves_its_vectors_in_parquet(
    session_home: Path,
    session_instance: dg.DagsterInstance,
    tmp_path: Path,
    transformers: PoolingEngine,
) -> None:
    place = Place(tmp_path, session_home)
    place.environment |= {"OMP_NUM_THREADS": "1"}
    done = place.run("run", str(ROOT / "templates" / "core" / "embeddings.yaml"), "--quiet")
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())

    table = pq.read_table(folder / "responses.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), WIDTH)
    assert table["embedding"].null_count == 0
    rows = table.to_pylist()
    assert [row["index"] for row in rows] == list(range(24))
    expected = vectors(transformers, [row["prompt"] for row in rows])
    for row in rows:
        assert row["embedding"] == pytest.approx(embedding(expected[row["index"]]), abs=1e-4)
    items = json.loads((folder / "responses.json").read_text())["result"]["items"]
    assert [len(item["embedding"]) for item in items] == [WIDTH] * 24
