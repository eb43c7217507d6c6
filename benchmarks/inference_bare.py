"""The bare engine in a process of its own: what anyone's script would do.

Started by `inference.py`. Loads the model, then answers a JSON line on standard input with one on
standard output: `{"prompts": FILE, "new_tokens": N}` → `{"seconds": …, "tokens": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import batched
from pathlib import Path
from typing import Any, Literal

from bare_process import BareProcess, say

EngineName = Literal["vllm", "transformers"]
BATCH_ROWS = 64
"""Rows that the loop over transformers pads to one length; what `max_batch_size` defaults to."""


class BareEngine(BareProcess):
    """All prompts at once through a warm engine, in a child process.

    Args:
        model: The model's folder.
        environment: Of the child.
        arguments: vLLM's engine arguments; transformers takes none.
        engine: `LLM.generate` of vLLM, or a loop over `generate` of transformers.
    """

    def __init__(
        self,
        model: Path,
        environment: dict[str, str],
        arguments: dict[str, Any],
        engine: EngineName = "vllm",
    ) -> None:
        super().__init__([__file__, engine, str(model), json.dumps(arguments)], environment)

    def generate(self, prompts: Path, new_tokens: int) -> dict[str, Any]:
        """Returns seconds and tokens of one pass over a workload, rendering included."""
        return self.ask({"prompts": str(prompts), "new_tokens": new_tokens})


class _Vllm:
    def __init__(self, model: str, arguments: dict[str, Any]) -> None:
        from vllm import LLM

        self._llm = LLM(model=model, **arguments)
        self.tokenizer = self._llm.get_tokenizer()

    def generate(self, texts: list[str], new_tokens: int) -> dict[str, int]:
        from vllm import SamplingParams

        how = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
        outputs = self._llm.generate(texts, how, use_tqdm=False)
        return {
            "tokens": sum(len(each.outputs[0].token_ids) for each in outputs),
            "prompt_tokens": sum(len(each.prompt_token_ids or []) for each in outputs),
            "cached_tokens": sum(each.num_cached_tokens or 0 for each in outputs),
        }


class _Transformers:
    """A careful script: longest prompts first, padded batches."""

    def __init__(self, model: str, _: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        self._model = loaded.to(self._device).eval()
        self._model.generation_config.eos_token_id = None

    def generate(self, texts: list[str], new_tokens: int) -> dict[str, int]:
        import torch

        prompts = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        tokens = 0
        for batch in batched(sorted(prompts, key=len, reverse=True), BATCH_ROWS):
            padded = self.tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt")
            with torch.inference_mode():
                output = self._model.generate(
                    **padded.to(self._device),
                    max_new_tokens=new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            new = output[:, padded["input_ids"].shape[1] :]
            tokens += new.numel()
            self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return {"tokens": tokens, "prompt_tokens": sum(map(len, prompts)), "cached_tokens": 0}


def _serve(engine: EngineName, model: str, arguments: dict[str, Any]) -> None:
    started = time.perf_counter()
    if engine == "vllm":
        import vllm  # noqa: F401  timed by itself
    else:
        import transformers  # noqa: F401
    imported = time.perf_counter()
    bare = _Vllm(model, arguments) if engine == "vllm" else _Transformers(model, arguments)
    say({"import_s": imported - started, "start_s": time.perf_counter() - imported})
    for line in sys.stdin:
        asked = json.loads(line)
        with Path(asked["prompts"]).open() as lines:
            questions = [json.loads(each)["question"] for each in lines]
        begun = time.perf_counter()
        texts = [
            bare.tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
            )
            for question in questions
        ]
        counts = bare.generate(texts, asked["new_tokens"])
        say({"seconds": time.perf_counter() - begun, **counts})


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    chosen: EngineName = "vllm" if sys.argv[1] == "vllm" else "transformers"
    _serve(chosen, sys.argv[2], json.loads(sys.argv[3]))
