"""Generation throughput of `mloc run` against a plain padded-batch `generate` loop.

    python benchmarks/generation.py --prompts FILE.jsonl [--column question] [--rows 1319]

Both generate `--new-tokens` for each prompt with tiny-chat, greedily, on all cores, in batches of
the same size over prompts sorted by length, and take turns. The plain loop is timed around its
batches, tokenisation included. Of `mloc run` the shards' time counts, reading rows and writing
results included, without loading the model; the whole command's time is recorded beside it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

from mloc_dagster.models import builtin_model_path

TEMPLATE = """
apiVersion: mloc/v1
kind: InferenceTask
metadata: {{name: generation}}
spec:
  taskType: inference
  parallel: {{max_shards: {shards}}}
  model:
    engine: transformers
    source: {{type: builtin, identifier: tiny-chat}}
    transformers: {{max_batch_size: {batch_size}, max_batch_tokens: 1000000}}
  data: {{type: dataset, url: {data}, column: {column}, split: "train[:{rows}]"}}
  inference: {{temperature: 0, max_tokens: {new_tokens}, ignore_eos: true}}
"""


class PlainLoop:
    """What a careful script does: sort by length, pad, generate."""

    def __init__(self, prompts: list[str], options: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = builtin_model_path("tiny-chat")
        self._tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(path).eval()
        # Without an end of sequence each prompt costs exactly so many tokens.
        self._model.generation_config.eos_token_id = None
        self._prompts = prompts
        self._options = options

    def tokens_per_s(self) -> float:
        """Generates for every prompt once."""
        import torch

        started = time.perf_counter()
        chats = [[{"role": "user", "content": prompt}] for prompt in self._prompts]
        texts = self._tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, tokenize=False
        )
        encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        encoded.sort(key=len, reverse=True)
        tokens = 0
        for batch in itertools.batched(encoded, self._options.batch_size):
            padded = self._tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt")
            with torch.inference_mode():
                output = self._model.generate(
                    **padded,
                    max_new_tokens=self._options.new_tokens,
                    do_sample=False,
                    pad_token_id=self._tokenizer.pad_token_id,
                )
            new = output[:, padded["input_ids"].shape[1] :]
            tokens += new.numel()
            self._tokenizer.batch_decode(new, skip_special_tokens=True)
        return tokens / (time.perf_counter() - started)


def run_mloc(template: Path, folder: Path) -> tuple[float, float]:
    """Runs the template; returns tokens/s of its shards, and of the whole command."""
    environment = {
        **os.environ,
        "MLOC_HOME": str(folder / "home"),
        "MLOC_RESULTS_URL": str(folder / "results"),
    }
    command = [sys.executable, "-m", "mloc_dagster.cli", "run", str(template), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    whole = time.perf_counter() - started
    run_id = json.loads(done.stdout)["run_id"]
    steps = folder / "results" / ".dagster" / run_id / "steps"
    documents = [json.loads(path.read_text()) for path in steps.rglob("*.json")]
    reports = [each["value"] for each in documents if each["type"] == "ShardReport"]
    tokens = sum(each["completion_tokens"] for each in reports)
    return tokens / sum(each["seconds"] - each["load_seconds"] for each in reports), tokens / whole


def main() -> None:
    """Measures in turns and records."""
    options = _options()
    with options.prompts.open(encoding="utf-8") as lines:
        taken = itertools.islice(lines, options.rows)
        prompts = [json.loads(line)[options.column] for line in taken]
    loop = PlainLoop(prompts, options)
    plain: list[float] = []
    ours: list[float] = []
    whole: list[float] = []
    with tempfile.TemporaryDirectory(prefix="mloc-") as name:
        template = Path(name) / "generation.yaml"
        values = {**vars(options), "data": options.prompts.resolve(), "rows": len(prompts)}
        template.write_text(TEMPLATE.format(**values))
        for _ in range(options.rounds):
            plain.append(loop.tokens_per_s())
            shards, command = run_mloc(template, Path(name))
            ours.append(shards)
            whole.append(command)
    record(
        "generation",
        {
            "prompts": len(prompts),
            "new_tokens": options.new_tokens,
            "batch_size": options.batch_size,
            "shards": options.shards,
            "plain_tokens_per_s": plain,
            "mloc_tokens_per_s": ours,
            "mloc_whole_command_tokens_per_s": whole,
            "ratio": statistics.median(ours) / statistics.median(plain),
        },
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--prompts", type=Path, required=True, help="a jsonl file")
    parser.add_argument("--column", default="question")
    parser.add_argument("--rows", type=int, default=1319)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--shards", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
