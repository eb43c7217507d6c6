"""How often the right passage is found, beside bm25s and LanceDB on the same texts and vectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rag_options import Options
from rag_tasks import TRUNCATED, WHOLE, Done, Templates, local_model, templates_in

DEPTH = 10
"""Passages that are looked at for each question."""


def measure_quality(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns recall and mean reciprocal rank of each way of searching, mloc's and the bare one."""
    with templates_in(folder) as templates:
        english = _english(options.embedder, _xquad(options, folder, "en"), templates)
        chinese = _chinese(_xquad(options, folder, "zh"), templates)
    return {
        "english": english,
        "chinese": chinese,
        "hybrid_is_best": all(
            english["mloc hybrid"][name] >= max(each[name] for each in english.values())
            for name in ("recall@1", "recall@5", "mrr")
        ),
    }


def _english(
    embedder: Path, files: tuple[Path, Path], templates: Templates
) -> dict[str, dict[str, float]]:
    passages, questions = files
    given = _columns(questions, "passage_ids")
    model, vectors = local_model(embedder), dict[str, Done]()
    figures: dict[str, dict[str, float]] = {}
    for mode in ("dense", "keyword", "hybrid"):
        found = _search(files, templates, "en", mode, model)
        figures[f"mloc {mode}"] = _scores(found, given)
    for name, path, column in (("en", passages, "text"), ("asked", questions, "question")):
        data = {"type": "dataset", "url": str(path), "column": column}
        vectors |= templates.run(
            name, "embedding", data=data, model=model, pooling=TRUNCATED, reuse=True
        )
    names, texts = _columns(passages, "id"), _columns(passages, "text")
    asked = _columns(questions, "question")
    figures["LanceDB dense"] = _scores(_nearest(names, vectors["en"], vectors["asked"]), given)
    figures["bm25s"] = _scores(_bm25s(names, texts, asked, _english_words), given)
    return figures


def _chinese(files: tuple[Path, Path], templates: Templates) -> dict[str, dict[str, float]]:
    passages, questions = files
    given = _columns(questions, "passage_ids")
    # Words alone are searched: any model may make the vectors.
    model = {"source": {"type": "builtin", "identifier": "tiny-embed"}}
    found = _search(files, templates, "zh", "keyword", model)
    names, texts = _columns(passages, "id"), _columns(passages, "text")
    bare = _bm25s(names, texts, _columns(questions, "question"), _chinese_words)
    return {"mloc keyword": _scores(found, given), "bm25s with jieba": _scores(bare, given)}


def _search(
    files: tuple[Path, Path],
    templates: Templates,
    language: str,
    mode: str,
    model: Mapping[str, Any],
) -> list[list[str]]:
    passages, questions = files
    done = templates.run(
        language,
        data={"type": "dataset", "url": str(questions), "column": "question"},
        corpus={
            "source": {
                "type": "dataset",
                "url": str(passages),
                "text_column": "text",
                "id_column": "id",
            },
            "chunk": WHOLE,
        },
        index={"name": language},
        embedding={"model": model, "pooling": TRUNCATED},
        search={"mode": mode, "top_k": DEPTH},
        reuse=True,
    )
    rows = done[language].result["items"]
    return [[each["document"] for each in row["retrieved"]] for row in rows]


def _nearest(names: Sequence[str], chunks: Done, queries: Done) -> list[list[str]]:
    import lancedb
    import numpy as np

    vectors = _vectors(chunks)
    rows = [{"id": name, "vector": each} for name, each in zip(names, vectors, strict=True)]
    table = lancedb.connect("memory://").create_table("passages", rows)
    query = table.search(np.asarray(_vectors(queries), dtype=np.float32)).distance_type("cosine")
    found: list[list[tuple[float, str]]] = [[] for _ in queries.result["items"]]
    for row in query.limit(DEPTH).to_list():
        found[row["query_index"]].append((row["_distance"], row["id"]))
    return [[name for _, name in sorted(each)] for each in found]


def _vectors(done: Done) -> list[list[float]]:
    return [each["embedding"] for each in done.result["items"]]


def _bm25s(
    names: Sequence[str],
    texts: Sequence[str],
    questions: Sequence[str],
    words: Callable[[Sequence[str]], list[list[str]]],
) -> list[list[str]]:
    import bm25s

    searcher = bm25s.BM25()
    searcher.index(words(texts), show_progress=False)
    places, _ = searcher.retrieve(words(questions), k=DEPTH, show_progress=False)
    return [[names[place] for place in row] for row in places.tolist()]


def _english_words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    found: Any = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return found


def _chinese_words(texts: Sequence[str]) -> list[list[str]]:
    try:
        import jieba
    except ImportError:
        raise SystemExit("the part `quality` needs jieba: uv pip install jieba") from None
    jieba.setLogLevel("ERROR")
    return [[each for each in jieba.lcut_for_search(text) if each.strip()] for text in texts]


def _scores(found: Sequence[Sequence[str]], right: Sequence[Sequence[str]]) -> dict[str, float]:
    ranks = [
        next((rank for rank, name in enumerate(some, start=1) if name in wanted), None)
        for some, wanted in zip(found, right, strict=True)
    ]
    figures = {
        "recall@1": sum(rank == 1 for rank in ranks),
        "recall@5": sum(rank is not None and rank <= 5 for rank in ranks),
        "mrr": sum(1 / rank for rank in ranks if rank is not None),
    }
    return {name: round(value / len(ranks), 4) for name, value in figures.items()}


def _xquad(options: Options, folder: Path, language: str) -> tuple[Path, Path]:
    """Returns files of the first passages and questions; those of the first passage come first."""
    files: list[Path] = []
    for path, most in zip(
        options.xquad(language), (options.passages, options.questions), strict=True
    ):
        with path.open() as lines:
            files.append(folder / path.name)
            files[-1].write_text("".join(islice(lines, most)))
    return files[0], files[1]


def _columns(path: Path, name: str) -> list[Any]:
    with path.open() as lines:
        return [json.loads(line)[name] for line in lines]
