"""Bare vLLM in a process of its own: one `LLM.chat` over all prompts.

Started by `rag_answers.py`. Loads the model, then answers a JSON line on standard input with one on
standard output: `{"prompts": […], "new_tokens": N}` → `{"seconds": …, "cpu_s": …, "tokens": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bare_process import BareProcess, say


class BareChat(BareProcess):
    """Bare vLLM in a child process.

    Args:
        model: The model's folder.
        arguments: vLLM's engine arguments.
    """

    def __init__(self, model: Path, arguments: dict[str, Any]) -> None:
        super().__init__([__file__, str(model), json.dumps(arguments)], {**os.environ})

    def run(self, prompts: Sequence[str], new_tokens: int) -> dict[str, Any]:
        """Returns seconds, processor seconds and tokens of answers to all prompts."""
        return self.ask({"prompts": prompts, "new_tokens": new_tokens})


def _serve(model: str, arguments: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **arguments)
    say({})
    for line in sys.stdin:
        asked = json.loads(line)
        how = SamplingParams(temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True)
        llm.reset_prefix_cache()
        began, cpu_s = time.perf_counter(), time.process_time()
        chats: Any = [[{"role": "user", "content": each}] for each in asked["prompts"]]
        outputs = llm.chat(chats, how, use_tqdm=False)
        say(
            {
                "seconds": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu_s,
                "tokens": sum(len(each.outputs[0].token_ids) for each in outputs),
            }
        )


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    _serve(sys.argv[1], json.loads(sys.argv[2]))
