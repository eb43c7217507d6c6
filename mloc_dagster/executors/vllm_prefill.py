"""How many steps vLLM may take to read a prompt on a CPU.

Reading in pieces (chunked prefill) fills every step and is faster. But vLLM 0.32 turns the
generator of a seeded request back after each piece, which torch can only do on GPUs: such a
request breaks a CPU's engine. So an engine reads in pieces until a seeded request comes, and whole
prompts from then on until it is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mloc_dagster.executors.vllm_shutdown import in_process

STEP_TOKENS = 4096
"""Tokens of a step at most while prompts are read in pieces: what `vllm.LLM` takes on a CPU."""


class PromptSteps:
    """Decides how an engine's scheduler cuts prompts; does nothing for engines on GPUs.

    Args:
        llm: vLLM's `LLMEngine`, which must be empty.
        given: The engine arguments that the template gives.
    """

    def __init__(self, llm: Any, given: Mapping[str, Any]) -> None:
        self._scheduler = llm.engine_core.engine_core.scheduler if in_process(llm) else None
        if self._scheduler is None:
            return
        self._config = self._scheduler.scheduler_config
        self._most = self._config.max_num_batched_tokens
        self._longest = llm.model_config.max_model_len
        generates = llm.model_config.runner_type == "generate"
        self._in_pieces = generates and given.get("enable_chunked_prefill") is not False
        self._step = self._most
        if "max_num_batched_tokens" not in given:
            self._step = min(self._most, STEP_TOKENS)

    def in_pieces(self) -> None:
        """Lets prompts be read in pieces, unless the template forbids it; the engine is empty."""
        if self._scheduler is not None and self._in_pieces:
            self._config.enable_chunked_prefill = True
            self._scheduler.max_num_scheduled_tokens = self._step

    def whole(self) -> None:
        """Has prompts read in one step each, for the sake of a seeded request.

        Raises:
            ValueError: If the template leaves too few tokens to a step for that.
        """
        if self._scheduler is None:
            return
        if self._most < self._longest:
            raise ValueError(
                f"model.vllm.max_num_batched_tokens is {self._most}: on a CPU, vLLM answers at a "
                f"temperature above 0 only if it is not less than max_model_len, {self._longest}"
            )
        self._config.enable_chunked_prefill = False
        self._scheduler.max_num_scheduled_tokens = self._most
