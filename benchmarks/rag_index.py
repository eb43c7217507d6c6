"""A large index in PostgreSQL, beside `COPY`, `CREATE INDEX` and `SELECT` by hand."""

from __future__ import annotations

import io
import resource
import statistics
import struct
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
from rag_options import Options
from rag_tasks import Stopwatch, Took, templates_in

from mloc_dagster.home import postgres_url
from mloc_dagster.index import open_index, write_keywords
from mloc_dagster.results import Passage
from mloc_dagster.schema import Index

DIMENSION = 384
CLIENTS = 16
TOP_K = 5
AT_ONCE = 1024
"""Chunks that an index task adds at once."""

WIDTH = 40
"""Candidates that a search looks at (`hnsw.ef_search`): what a search for five has by default."""

_INDEX = Index(name="large")
_SEARCH = (
    "SELECT id, text, document, vector <=> %s::vector AS distance FROM bare_chunks"
    " ORDER BY vector <=> %s::vector LIMIT %s"
)
_Search = Callable[[Any], int]
_Opener = Callable[[], Any]


def measure_index(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns times and latencies of an index by mloc and by hand; vectors are random."""
    vectors = np.random.default_rng(0).normal(size=(options.chunks, DIMENSION)).astype("float32")
    with templates_in(folder):
        base_mib = _peak_mib()
        ours, keywords = _build(vectors)
        peak_mib = _peak_mib()
        bare = _build_by_hand(vectors)
        latencies = _latencies(options)
    ours_s, bare_s = latencies["mloc"], latencies["by hand"]
    return {
        "build": {"mloc": asdict(ours), "by hand": asdict(bare)},
        "build_ratio": round(ours.seconds / bare.seconds, 3),
        "build_cpu_ratio": round(ours.cpu_s / bare.cpu_s, 3),
        "keywords": asdict(keywords),
        "peak_mib": {"before": base_mib, "after": peak_mib},
        "clients": CLIENTS,
        "p50_ms": {name: round(_percentile(each, 50), 2) for name, each in latencies.items()},
        "p95_ms": {name: round(_percentile(each, 95), 2) for name, each in latencies.items()},
        "p95_ratio": round(_percentile(ours_s, 95) / _percentile(bare_s, 95), 3),
    }


def _build(vectors: Any) -> tuple[Took, Took]:
    """Adds and publishes all chunks as an index task does; then makes them searchable by words."""
    with closing(open_index(_INDEX)) as index:
        watch = Stopwatch()
        index.create(DIMENSION, "random")
        for some in batched(range(len(vectors)), AT_ONCE):
            index.add([_passage(place) for place in some], vectors[some[0] : some[-1] + 1])
        version = index.publish("build", (_id(place) for place in range(len(vectors))))
        built = watch.took()
        watch = Stopwatch()
        write_keywords(_INDEX, version.number, index.texts(version.number))
        return built, watch.took()


def _build_by_hand(vectors: Any) -> Took:
    with _connected() as cursor:
        watch = Stopwatch()
        cursor.execute(
            "CREATE TABLE bare_chunks (id text PRIMARY KEY, text text, document text,"
            f" vector vector({DIMENSION}))"
        )
        for some in batched(range(len(vectors)), AT_ONCE):
            cursor.copy_expert(
                "COPY bare_chunks FROM STDIN (FORMAT binary)", io.BytesIO(_rows(some, vectors))
            )
        hnsw = _INDEX.hnsw
        cursor.execute("SET maintenance_work_mem = '512MB'")
        cursor.execute(
            "CREATE INDEX ON bare_chunks USING hnsw (vector vector_cosine_ops)"
            f" WITH (m = {hnsw.m}, ef_construction = {hnsw.ef_construction})"
        )
        cursor.execute("ANALYZE bare_chunks")
        return watch.took()


def _rows(places: tuple[int, ...], vectors: Any) -> bytes:
    pieces = [b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0)]
    head = struct.pack("!hh", DIMENSION, 0)
    for place in places:
        passage = _passage(place)
        values = [each.encode() for each in (passage.id, passage.text, passage.document)]
        values.append(head + vectors[place].astype(">f4").tobytes())
        pieces.append(struct.pack("!h", len(values)))
        pieces += [struct.pack("!i", len(each)) + each for each in values]
    return b"".join([*pieces, struct.pack("!h", -1)])


def _latencies(options: Options) -> dict[str, list[float]]:
    """Returns the seconds of each search; both ways take turns."""
    searches = max(2_000 // CLIENTS, 1) if options.chunks > 10_000 else 10
    queries = np.random.default_rng(1).normal(size=(CLIENTS, searches, DIMENSION))
    ways: dict[str, _Opener] = {"mloc": _searching, "by hand": _searching_by_hand}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(options.rounds + 1):
        for name, opener in ways.items():
            seconds = _asked(opener, queries.astype("float32"))
            if number:  # the first round fills the caches
                found[name] += seconds
    return found


def _asked(opener: _Opener, queries: Any) -> list[float]:
    """Returns what each search took that clients asked at the same time."""
    seconds: list[float] = []
    ready = threading.Barrier(len(queries))

    def ask(mine: Any) -> None:
        with opener() as search:
            search(mine[0])
            ready.wait()
            for vector in mine:
                begun = time.perf_counter()
                if search(vector) != TOP_K:
                    raise SystemExit("a search found too little")
                seconds.append(time.perf_counter() - begun)

    clients = [threading.Thread(target=ask, args=[mine]) for mine in queries]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    if len(seconds) != queries.shape[0] * queries.shape[1]:
        raise SystemExit("a client ended early")
    return seconds


@contextmanager
def _searching() -> Generator[_Search]:
    with closing(open_index(_INDEX)) as index:
        yield lambda vector: len(index.search(1, vector[None], TOP_K, {})[0])


@contextmanager
def _searching_by_hand() -> Generator[_Search]:
    with _connected() as cursor:
        cursor.execute("SET hnsw.iterative_scan = 'strict_order'")
        cursor.execute(f"SET hnsw.ef_search = {WIDTH}")

        def search(vector: Any) -> int:
            text = "[" + ",".join(map(str, vector.tolist())) + "]"
            cursor.execute(_SEARCH, (text, text, TOP_K))
            return len(cursor.fetchall())

        yield search


@contextmanager
def _connected() -> Generator[Any]:
    connection = psycopg2.connect(postgres_url().replace("+psycopg2", "", 1))
    connection.autocommit = True
    with closing(connection), connection.cursor() as cursor:
        yield cursor


def _passage(place: int) -> Passage:
    return Passage(_id(place), _text(place), f"document {place // 10}", 0, 600)


def _id(place: int) -> str:
    return f"{place:032x}"


def _text(place: int) -> str:
    """Returns about 600 characters of words that come in few chunks and in many."""
    return " ".join(_words(place))


def _words(place: int) -> Iterator[str]:
    for number in range(80):
        yield f"w{(place * 2_654_435_761 + number * number * 40_503) % (25 << (number % 12))}"


def _percentile(seconds: list[float], percent: int) -> float:
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1e3


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
