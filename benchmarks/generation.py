"""Generation throughput: the transformers executor against a plain `generate` loop.

    python benchmarks/generation.py [--prompts FILE.jsonl --column question] [--rows 300]

Both run in this process, alternately, on the same loaded model, prompts and batch size; the plain
loop sorts all prompts by length and pads each batch, as a careful script would. Prints tokens per
second of each round and the ratio of the medians. End of sequence is ignored, so that each row
costs exactly `--new-tokens`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from mloc_dagster.executors.base import ShardContext, ShardInput
from mloc_dagster.executors.transformers import TransformersExecutor
from mloc_dagster.executors.transformers_model import LoadedModel
from mloc_dagster.results.rows import InputRow, OutputRow
from mloc_dagster.schema.task import InferenceSpec

SHIPPED = (
    "What is the capital of France?",
    "What is the opposite of cold?",
    "Is this review positive or negative? The room was clean and the staff were kind.",
    "What is 13 + 4?",
)


def main() -> None:
    """Measures and prints."""
    options = _options()
    prompts = _prompts(options)
    source = {"type": "builtin", "identifier": "tiny-chat"}
    if options.model:
        source = {"type": "local", "identifier": options.model}
    spec = InferenceSpec.model_validate(
        {
            "taskType": "inference",
            "model": {
                "source": source,
                "transformers": {
                    "max_batch_size": options.batch_size,
                    "max_batch_tokens": 1 << 30,
                },
            },
            "data": {"type": "list", "items": prompts},
            "inference": {
                "max_tokens": options.new_tokens,
                "temperature": options.temperature,
                "ignore_eos": True,
                "seed": 0,
            },
        }
    )
    executor = TransformersExecutor()
    loaded = executor.load(spec)
    plain: list[float] = []
    ours: list[float] = []
    _generate_plainly(loaded, prompts[: options.batch_size], options)  # warms up
    for number in range(options.rounds):
        started = time.perf_counter()
        tokens = _generate_plainly(loaded, prompts, options)
        plain.append(tokens / (time.perf_counter() - started))
        started = time.perf_counter()
        tokens = _run_executor(executor, loaded, spec, prompts)
        ours.append(tokens / (time.perf_counter() - started))
        print(f"round {number + 1}: plain {plain[-1]:,.0f} tokens/s, executor {ours[-1]:,.0f}")
    ratio = statistics.median(ours) / statistics.median(plain)
    print(f"executor / plain over {len(prompts)} prompts: {ratio:.2f}")


def _generate_plainly(loaded: LoadedModel, prompts: list[str], options: argparse.Namespace) -> int:
    import torch

    tokenizer = loaded.tokenizer
    encoded = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True
        )["input_ids"]
        for prompt in prompts
    ]
    encoded.sort(key=len, reverse=True)
    answers: list[str] = []
    tokens = 0
    for start in range(0, len(encoded), options.batch_size):
        batch = tokenizer.pad(
            {"input_ids": encoded[start : start + options.batch_size]},
            padding_side="left",
            return_tensors="pt",
        ).to(loaded.model.device)
        sampled = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
        with torch.inference_mode():
            output = loaded.model.generate(
                **batch,
                max_new_tokens=options.new_tokens,
                pad_token_id=loaded.pad_token_id,
                **(sampled if options.temperature else {"do_sample": False}),
            )
        new = output[:, batch["input_ids"].shape[1] :]
        tokens += new.numel()
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    return tokens


def _run_executor(
    executor: TransformersExecutor, loaded: LoadedModel, spec: InferenceSpec, prompts: list[str]
) -> int:
    rows: list[OutputRow] = []
    context = ShardContext(rows.append, lambda: False, lambda _: None)
    inputs = [InputRow(index, prompt) for index, prompt in enumerate(prompts)]
    executor.run(ShardInput("benchmark", 0, 1, 0, inputs, len(inputs)), spec, loaded, context)
    return sum(row.completion_tokens for row in rows)


def _prompts(options: argparse.Namespace) -> list[str]:
    if options.prompts is None:
        return list(itertools.islice(itertools.cycle(SHIPPED), options.rows))
    return list(itertools.islice(_column(options.prompts, options.column), options.rows))


def _column(path: Path, column: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)[column]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompts", type=Path, help="jsonl file; shipped questions without it")
    parser.add_argument("--column", default="question")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--model", help="a local folder instead of tiny-chat")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
