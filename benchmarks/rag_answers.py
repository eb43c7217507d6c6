"""Answers by passages, beside one `LLM.chat` over the same prompts in the same engine."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
    _bare(engine, prompts[:1])
    ours, bare = list[tuple[float, float]](), list[tuple[float, float]]()
    for _number in range(options.rounds):
        bare.append(_timed(engine, lambda: _bare(engine, prompts)))
        ours.append(_timed(engine, lambda: _answer(spec, engine, rows)))
    figures = {
        name: {
            "answers_per_s": round(
                len(rows) / statistics.median(seconds for seconds, _ in each), 3
            ),
            "seconds": [round(seconds, 2) for seconds, _ in each],
            "cpu_s": [round(cpu_s, 2) for _, cpu_s in each],
        }
        for name, each in (("mloc", ours), ("LLM.chat", bare))
    }
    return {
        **figures,
        "rows": len(rows),
        "new_tokens": NEW_TOKENS,
        "ratio": round(
            statistics.median(seconds for seconds, _ in bare)
            / statistics.median(seconds for seconds, _ in ours),
            3,
        ),
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


def _bare(engine: Any, prompts: list[str]) -> int:
    from vllm import SamplingParams

    how = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    chats: Any = [[{"role": "user", "content": each}] for each in prompts]
    outputs = engine.llm.chat(chats, how, use_tqdm=False)
    return sum(len(each.outputs[0].token_ids) for each in outputs)


def _timed(engine: Any, work: Any) -> tuple[float, float]:
    engine.llm.reset_prefix_cache()
    began, cpu_s = time.perf_counter(), time.process_time()
    tokens = work()
    seconds = time.perf_counter() - began
    if tokens % NEW_TOKENS:
        raise SystemExit(f"{tokens} tokens are not {NEW_TOKENS} for each row")
    return seconds, time.process_time() - cpu_s
