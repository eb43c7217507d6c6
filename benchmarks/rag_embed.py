"""Vectors of the same passages: the index task, the embedding task, bare libraries; in turns."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rag_options import Options
from rag_tasks import TRUNCATED, local_model, templates_in

from mloc_dagster.executors import ShardContext, ShardInput, task_executor
from mloc_dagster.index import open_index
from mloc_dagster.results import InputRow, OutputRow, Passage
from mloc_dagster.schema import IndexSpec, RowSpec, spec_of

BATCH_TOKENS = 8_192


def measure_embed(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns passages a second of each way, and what they are of the way that each stands on.

    All have one thread pool, one precision and one process. The index is PostgreSQL's, dropped
    before each round, so that every chunk is new.
    """
    texts = _texts(options)
    common = {"model": local_model(options.embedder), "pooling": TRUNCATED, "enforce_cpu": True}
    embedding = spec_of(
        {"taskType": "embedding", "data": {"type": "list", "items": ["?"]}, **common}
    )
    index = spec_of(
        {
            "taskType": "index",
            "data": {"type": "upstream", "node": "chunks", "text": "{prompt}"},
            "index": {"name": "passages"},
            **common,
        }
    )
    engine: Any = task_executor("embedding").load(embedding)
    ways: dict[str, Callable[[], None]] = {
        "index task": lambda: _index(index, engine, texts),
        "embedding task": lambda: _embed(embedding, engine, texts),
        "transformers": _transformers(options.embedder, texts),
    }
    sentence = _sentence_transformers(options.embedder, texts)
    if sentence is not None:
        ways["sentence-transformers"] = sentence
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with templates_in(folder):
        for number in range(options.rounds + 1):
            for name, way in ways.items():
                if name == "index task":
                    _drop(index)
                began, cpu_s = time.perf_counter(), time.process_time()
                way()
                if number:  # the first round warms all of them
                    spent = time.perf_counter() - began, time.process_time() - cpu_s
                    took[name].append(spent)
    seconds, cpu_s = (
        {name: statistics.median(each[place] for each in some) for name, some in took.items()}
        for place in (0, 1)
    )
    return {
        "passages_per_s": {name: round(len(texts) / each, 2) for name, each in seconds.items()},
        "cpu_s": {name: round(each, 2) for name, each in cpu_s.items()},
        "ratio": _ratios(seconds),
        "cpu_ratio": _ratios(cpu_s),
    }


def _ratios(took: dict[str, float]) -> dict[str, float]:
    """Returns the speed of each task as a share of what it stands on."""
    ratios = {"index task / embedding task": took["embedding task"] / took["index task"]}
    for name in ("transformers", "sentence-transformers"):
        if name in took:
            ratios[f"embedding task / {name}"] = took[name] / took["embedding task"]
    return {name: round(each, 3) for name, each in ratios.items()}


def _texts(options: Options) -> list[str]:
    passages, _ = options.xquad("en")
    with passages.open() as lines:
        return [json.loads(line)["text"] for line in lines][: options.passages]


def _embed(spec: RowSpec, engine: Any, texts: Sequence[str]) -> None:
    _run(spec, engine, [InputRow(place, text) for place, text in enumerate(texts)])


def _index(spec: RowSpec, engine: Any, texts: Sequence[str]) -> None:
    rows = [
        InputRow(place, "", chunks=[Passage(f"{place:032x}", text, str(place), 0, len(text))])
        for place, text in enumerate(texts)
    ]
    _run(spec, engine, rows)


def _run(spec: RowSpec, engine: Any, rows: list[InputRow]) -> None:
    done: list[OutputRow] = []
    context = ShardContext(done.append, lambda: False, lambda _: None)
    shard = ShardInput("t", 0, 1, 7, iter(rows), len(rows))
    task_executor(spec.task_type).run(shard, spec, engine, context)
    failed = [each.error for each in done if each.error is not None]
    if failed or len(done) != len(rows):
        raise SystemExit(f"{len(failed)} rows failed of {len(done)}: {failed[:1]}")


def _drop(spec: RowSpec) -> None:
    assert isinstance(spec, IndexSpec)
    index = open_index(spec.index)
    index.drop()
    index.close()


def _transformers(place: Path, texts: Sequence[str]) -> Callable[[], None]:
    """Returns a careful script: longest texts first, batches of about as many tokens each."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModel.from_pretrained(place).eval()
    limit = json.loads((place / "sentence_bert_config.json").read_text())["max_seq_length"]

    def embed() -> None:
        ids = tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"]
        for batch in _balanced(sorted(ids, key=len, reverse=True)):
            padded = tokenizer.pad({"input_ids": batch}, return_tensors="pt")
            with torch.inference_mode():
                states = model(**padded).last_hidden_state
                mask = padded["attention_mask"].unsqueeze(-1)
                means = (states * mask).sum(1) / mask.sum(1)
                torch.nn.functional.normalize(means).tolist()

    return embed


def _balanced(ids: Sequence[list[int]]) -> list[list[list[int]]]:
    batches: list[list[list[int]]] = [[]]
    for each in ids:
        batch = batches[-1]
        if batch and (len(batch) + 1) * len(batch[0]) > BATCH_TOKENS:
            batches.append(batch := [])
        batch.append(each)
    return batches


def _sentence_transformers(place: Path, texts: Sequence[str]) -> Callable[[], None] | None:
    """Returns its own `encode`; None where it is not installed."""
    try:
        import sentence_transformers
    except ImportError:
        return None
    model = sentence_transformers.SentenceTransformer(str(place), device="cpu")

    def encode() -> None:
        model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False).tolist()

    return encode
