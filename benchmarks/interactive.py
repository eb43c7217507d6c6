"""How soon a call is answered beside a shard, and what that costs the shard.

    python benchmarks/interactive.py [--engine vllm|transformers] [--rows 400] [--calls 20]

tiny-chat, on one thread, generates `--new-tokens` for each row, `--at-once` of them at a time. The
latency is that of the first text of a call, alone and beside the shard, one call after another.
The shard's throughput is measured without calls and with as many as one caller makes.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Iterator

from record import record

from mloc_dagster.executors import (
    Caller,
    InferenceExecutor,
    InputRow,
    OutputRow,
    ShardContext,
    ShardInput,
    loader_of,
)
from mloc_dagster.schema import InferenceSpec, find_engine

EXECUTOR = InferenceExecutor()
PROMPT = "Tell me about dragons."


def spec_of(options: argparse.Namespace) -> InferenceSpec:
    """Returns a task with the options of both shard and calls."""
    return InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "enforce_cpu": True,
            "model": {
                "source": {"type": "builtin", "identifier": "tiny-chat"},
                "engine": options.engine,
                options.engine: {
                    "vllm": {"max_num_seqs": options.at_once},
                    "transformers": {"max_batch_size": options.at_once},
                }[options.engine],
            },
            "data": {"type": "list", "items": ["unused"]},
            "inference": {
                "temperature": 0,
                "max_tokens": options.new_tokens,
                "ignore_eos": True,
            },
        }
    )


class Bench:
    """One engine, a shard and a caller."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._spec = spec_of(options)
        self._engine = loader_of(find_engine(options.engine)).load(self._spec)
        self._computing = threading.Event()

    def first_text_s(self) -> float:
        """Makes a call; returns the seconds to its first text."""
        began = time.perf_counter()
        first: list[float] = []

        def text(number: int, piece: str) -> None:
            if not first:
                first.append(time.perf_counter() - began)

        caller = Caller(text, lambda: False, stream=True)
        EXECUTOR.answer([InputRow(0, PROMPT)], self._spec, self._engine, caller)
        return first[0]

    def shard_tokens_per_s(self) -> float:
        """Runs the shard."""
        done: list[OutputRow] = []

        def rows() -> Iterator[InputRow]:
            for index in range(self._options.rows):
                yield InputRow(index, f"What is {index} + 1?")

        def cancelled() -> bool:
            self._computing.set()
            return False

        began = time.perf_counter()
        context = ShardContext(done.append, cancelled, lambda _: None)
        EXECUTOR.run(ShardInput("t", 0, 1, 7, rows(), 0), self._spec, self._engine, context)
        return sum(row.completion_tokens for row in done) / (time.perf_counter() - began)

    def calls_beside_a_shard(self) -> tuple[list[float], float]:
        """Returns the calls' latencies and the shard's tokens per second."""
        self._computing.clear()
        rate: list[float] = []
        shard = threading.Thread(target=lambda: rate.append(self.shard_tokens_per_s()))
        shard.start()
        self._computing.wait()
        latencies: list[float] = []
        while shard.is_alive():
            seconds = self.first_text_s()
            if shard.is_alive():
                latencies.append(seconds)
        return latencies, rate[0]

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def figures(latencies: list[float]) -> dict[str, object]:
    """Returns what is recorded of latencies."""
    return {
        "calls": len(latencies),
        "median_ms": round(1000 * statistics.median(latencies), 1),
        "worst_ms": round(1000 * max(latencies), 1),
    }


def main() -> None:
    """Measures, and records the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="transformers")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # on a busy machine, two wait for each other more than they compute
    bench = Bench(options)
    try:
        bench.first_text_s()
        alone = [bench.first_text_s() for _ in range(options.calls)]
        rate = bench.shard_tokens_per_s()
        beside, rate_beside = bench.calls_beside_a_shard()
    finally:
        bench.close()
    record(
        "interactive",
        {
            "options": vars(options),
            "first_text_alone": figures(alone),
            "first_text_beside_a_shard": figures(beside),
            "shard_tokens_per_s": round(rate),
            "shard_tokens_per_s_beside_calls": round(rate_beside),
            "shard_share_kept": round(rate_beside / rate, 3),
        },
    )


if __name__ == "__main__":
    main()
