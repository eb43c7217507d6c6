"""Answers by passages, beside one `LLM.chat` over the same prompts in a process of its own."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rag_answers_bare import BareChat
from rag_options import Options
from rag_tasks import local_model

from mloc_dagster.executors import EngineRequest, ShardContext, ShardInput, task_executor
from mloc_dagster.results import InputRow, OutputRow, Passage
from mloc_dagster.schema import RowSpec, spec_of

ENGINE = {"dtype": "float32", "enforce_eager": True, "max_model_len": 4096}
NEW_TOKENS = 64
PASSAGES = 5


def measure_answers(options: Options, _: Path, __: Path) -> dict[str, Any]:
    """Returns answers a second of the answer task and of `LLM.chat`, in turns.

    Neither finds the other's prompts in the prefix cache, and all answers have one length.
    """
    spec = spec_of(
        {
            "taskType": "answer",
            "data": {"type": "upstream", "node": "found", "text": "{prompt}"},
            "model": {**local_model(options.generator), "engine": "vllm", "vllm": ENGINE},
            "inference": {"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True},
        }
    )
    rows = _rows(options)
    engine: Any = task_executor("answer").load(spec)
    prompts = _asked(spec, engine, rows)
    ours, bare = list[dict[str, float]](), list[dict[str, float]]()
    with BareChat(options.generator, ENGINE) as chat:
        chat.run(prompts, NEW_TOKENS)
        for _number in range(options.rounds):
            bare.append(chat.run(prompts, NEW_TOKENS))
            ours.append(_timed(spec, engine, rows))
    counts = {each["tokens"] for each in (*ours, *bare)}
    if counts != {len(rows) * NEW_TOKENS}:
        raise SystemExit(f"answers of {counts} tokens, not {len(rows) * NEW_TOKENS}")
    ours_s, bare_s = (statistics.median(each["seconds"] for each in some) for some in (ours, bare))
    return {
        "answers_per_s": {
            "mloc": round(len(rows) / ours_s, 3),
            "LLM.chat": round(len(rows) / bare_s, 3),
        },
        "ratio": round(bare_s / ours_s, 3),
        "cpu_ratio": round(
            statistics.median(each["cpu_s"] for each in bare)
            / statistics.median(each["cpu_s"] for each in ours),
            3,
        ),
        "rounds": {"mloc": ours, "LLM.chat": bare},
        "rows": len(rows),
        "new_tokens": NEW_TOKENS,
    }


def _rows(options: Options) -> list[InputRow]:
    """Returns questions, each with its passage and four others."""
    files = options.xquad("en")
    passages, questions = ([json.loads(line) for line in path.open()] for path in files)
    texts = {each["id"]: Passage(each["id"], each["text"], each["title"]) for each in passages}
    some = random.Random(0)
    rows: list[InputRow] = []
    for index, each in enumerate(some.sample(questions, options.answers)):
        found = dict.fromkeys([each["passage_ids"][0], *some.sample(list(texts), PASSAGES)])
        kept = [texts[name] for name in list(found)[:PASSAGES]]
        rows.append(InputRow(index, each["question"], retrieved=kept))
    return rows


def _asked(spec: RowSpec, engine: Any, rows: list[InputRow]) -> list[str]:
    """Returns the prompts that the model reads; answering them warms it as well."""
    prompts: dict[int, str] = {}
    run = engine.run

    def noting(requests: Iterator[EngineRequest | None], replies: Any) -> None:
        def noted() -> Iterator[EngineRequest | None]:
            for each in requests:
                if each is not None:
                    assert isinstance(each.row.prompt, str)
                    prompts[each.row.index] = each.row.prompt
                yield each

        run(noted(), replies)

    engine.run = noting
    _answer(spec, engine, rows)
    engine.run = run
    return [prompts[row.index] for row in rows]


def _answer(spec: RowSpec, engine: Any, rows: list[InputRow]) -> int:
    done: list[OutputRow] = []
    context = ShardContext(done.append, lambda: False, lambda _: None)
    shard = ShardInput("t", 0, 1, 7, iter(rows), len(rows))
    task_executor("answer").run(shard, spec, engine, context)
    failed = [each.error for each in done if each.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {failed[0]}")
    return sum(each.completion_tokens for each in done)


def _timed(spec: RowSpec, engine: Any, rows: list[InputRow]) -> dict[str, float]:
    engine.llm.reset_prefix_cache()  # as the other one does
    began, cpu_s = time.perf_counter(), time.process_time()
    tokens = _answer(spec, engine, rows)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu_s,
        "tokens": tokens,
    }
