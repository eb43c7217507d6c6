"""The batch ideal in a process of its own: one `LLM.chat` per turn over all chats.

Started by `agent.py`. Loads the model, then answers a JSON line on standard input with one on
standard output: `{"rows": N, "turns": T, "new_tokens": K}` → `{"seconds": …, "tokens": …}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from agent_workload import FOUND, INSTRUCTIONS, QUESTION
from bare_process import BareProcess, say

_TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks for pages.",
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for."}},
            "required": ["query"],
        },
    },
}


class BareChats(BareProcess):
    """Bare vLLM in a child process.

    Args:
        model: The model's folder.
        environment: Of the child.
        arguments: vLLM's engine arguments.
    """

    def __init__(self, model: Path, environment: dict[str, str], arguments: dict[str, Any]) -> None:
        super().__init__([__file__, str(model), json.dumps(arguments)], environment)

    def run(self, rows: int, turns: int, new_tokens: int) -> dict[str, Any]:
        """Returns seconds and tokens of all chats, one call for each turn."""
        return self.ask({"rows": rows, "turns": turns, "new_tokens": new_tokens})


def _serve(model: str, arguments: dict[str, Any]) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(model=model, **arguments)
    say({})
    for line in sys.stdin:
        asked = json.loads(line)
        how = SamplingParams(temperature=0, max_tokens=asked["new_tokens"], ignore_eos=True)
        llm.reset_prefix_cache()
        begun = time.perf_counter()
        chats: list[list[dict[str, Any]]] = [
            [
                {"role": "system", "content": INSTRUCTIONS},
                {"role": "user", "content": QUESTION.format(index=index)},
            ]
            for index in range(asked["rows"])
        ]
        tokens = cached = prompts = later = 0
        for turn in range(asked["turns"]):
            outputs = llm.chat(chats, how, tools=[_TOOL], use_tqdm=False)  # pyright: ignore[reportArgumentType]
            for chat, output in zip(chats, outputs, strict=True):
                tokens += len(output.outputs[0].token_ids)
                prompts += len(output.prompt_token_ids or [])
                if turn:
                    later += len(output.prompt_token_ids or [])
                    cached += output.num_cached_tokens or 0
                chat += _told(output.outputs[0].text, turn)
        say(
            {
                "seconds": time.perf_counter() - begun,
                "tokens": tokens,
                "prompt_tokens": prompts,
                "hit_rate": cached / max(later, 1),
            }
        )


def _told(text: str, turn: int) -> list[dict[str, Any]]:
    function = {"name": "look", "arguments": f'{{"query": "page {turn}"}}'}
    call = {"id": f"call_{turn}", "type": "function", "function": function}
    return [
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "content": FOUND, "tool_call_id": f"call_{turn}"},
    ]


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    _serve(sys.argv[1], json.loads(sys.argv[2]))
