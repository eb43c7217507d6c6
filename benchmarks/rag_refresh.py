"""Indexing documents again of which one in a hundred has changed, against the first time."""

from __future__ import annotations

import json
import random
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rag_options import Options
from rag_tasks import Stopwatch, Templates, local_model, templates_in

ONE_IN = 100
SENTENCES = 6


def measure_refresh(options: Options, folder: Path, _: Path) -> dict[str, Any]:
    """Returns what both runs took, from the call to the last file, and each of their tasks.

    The process is there already, and has loaded the model for one document.
    """
    documents = _documents(options)
    with templates_in(folder) as templates:
        _index(options, templates, folder, documents[:1], "warm")
        first = _index(options, templates, folder, documents, "large")
        changed = [
            text + (" This line is new." if place % ONE_IN == 0 else "")
            for place, text in enumerate(documents)
        ]
        again = _index(options, templates, folder, changed, "large")
    return {
        "first": first,
        "again": again,
        "ratio": round(again["run"]["seconds"] / first["run"]["seconds"], 4),
        "cpu_ratio": round(again["run"]["cpu_s"] / first["run"]["cpu_s"], 4),
    }


def _index(
    options: Options, templates: Templates, folder: Path, documents: list[str], name: str
) -> dict[str, Any]:
    corpus, asked = folder / f"{name}.jsonl", folder / "asked.jsonl"
    corpus.write_text(
        "".join(
            json.dumps({"id": str(place), "text": text}) + "\n"
            for place, text in enumerate(documents)
        )
    )
    asked.write_text(json.dumps({"question": "What is new?"}) + "\n")
    watch = Stopwatch()
    done = templates.run(
        name,
        data={"type": "dataset", "url": str(asked), "column": "question"},
        corpus={
            "source": {"url": str(corpus), "text_column": "text", "id_column": "id"},
            "chunk": {"size": 200, "overlap": 20},
        },
        index={"name": name},
        embedding={"model": local_model(options.embedder)},
    )
    took = watch.took()
    counts = json.loads(done[f"{name}-index"].folder.read_bytes("summary.json"))["counts"]
    return {
        "run": asdict(took),
        "tasks_s": {node: round(each.seconds, 2) for node, each in done.items()},
        **counts,
    }


def _documents(options: Options) -> list[str]:
    """Returns texts of several sentences of the passages, no two the same."""
    passages, _ = options.xquad("en")
    with passages.open() as lines:
        texts = [json.loads(line)["text"] for line in lines]
    sentences = [each for text in texts for each in re.split(r"(?<=[.!?])\s+", text)]
    some = random.Random(0)
    return [
        f"{place}. " + " ".join(some.sample(sentences, SENTENCES))
        for place in range(options.documents)
    ]
