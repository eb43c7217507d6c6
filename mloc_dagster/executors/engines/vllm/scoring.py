"""Scores on vLLM: its pooling runner with a cross-encoder, behind the same feed as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.engines.pooling import most_tokens
from mloc_dagster.executors.engines.protocol import (
    Completion,
    EngineRequest,
    PairTokens,
    Rendered,
)
from mloc_dagster.executors.engines.scoring import Activation, activation_of, tokenize_pairs
from mloc_dagster.executors.engines.vllm.engine import CALLS_FIRST, VllmEngine
from mloc_dagster.executors.engines.vllm.pooling import read_config
from mloc_dagster.executors.engines.vllm.requests import prepare_adapters
from mloc_dagster.executors.engines.vllm.start import plan_engine
from mloc_dagster.executors.prompts import RowBlock, plain_text
from mloc_dagster.results import InputRow
from mloc_dagster.schema import ModelSpec


def load_engine(spec: ModelSpec) -> VllmScoringEngine:
    """Starts vLLM's pooling runner with the cross-encoder of a task.

    Raises:
        MissingExtraError: If vLLM is not installed.
        InputError: If the template wants adapters.
        TerminalError: If the model scores no pairs, or vLLM refuses it or an argument.
        TransientError: If the hub cannot be reached, or the engine's process ended.
    """
    if spec.model.adapters:
        raise InputError(f"model.adapters: a task of type {spec.task_type!r} has none")
    started = plan_engine(spec, runner="pooling")
    activation = activation_of(read_config(started), spec.model.source.identifier)
    # A score is made of what the model has read as a whole: nothing may come out of a cache.
    started = started.with_arguments(enable_prefix_caching=False)
    return VllmScoringEngine(started, prepare_adapters(started, ())[1], activation)


class VllmScoringEngine(VllmEngine):
    """A cross-encoder that vLLM runs; starts it.

    Args:
        started: How it is started.
        adapters: None of them.
        activation: Makes a score of its logit.
    """

    def __init__(self, started: Any, adapters: Any, activation: Activation) -> None:
        super().__init__(started, adapters)
        self._activation = activation
        config = self.llm.model_config.hf_config
        self._limit = most_tokens(config, self._tokenizer, self._max_tokens)

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Returns the first text of the row's pairs; a chat is its messages' texts.

        Raises:
            ValueError: If the row holds more than text.
        """
        return Rendered(plain_text(row.prompt))

    def tokenize_pairs(self, text: str, others: Sequence[str]) -> list[PairTokens]:
        """Returns what the model reads of a text together with each of the others.

        Raises:
            ValueError: If the text leaves no room for another.
        """
        return tokenize_pairs(self._tokenizer, text, others, self._limit, self.name)

    def add(self, request_id: str, request: EngineRequest) -> None:
        """Hands a pair to vLLM.

        Raises:
            ValueError: If it is none.
        """
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        if request.rendered.pair is None:
            raise ValueError("this engine scores pairs of texts and does nothing else")
        # The raw logit: scores are made here, as on transformers.
        params = PoolingParams(task="classify", use_activation=False)
        if request.second:
            params.extra_kwargs = {"compressed_token_type_ids": request.second}
        priority = CALLS_FIRST if request.urgent else 0
        self.llm.add_request(request_id, tokens_input(request.tokens), params, priority=priority)

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        """Returns a finished output as a completion.

        Raises:
            ValueError: If vLLM gave it up.
        """
        if output.outputs is None:
            raise ValueError("vLLM gave this row up")
        return Completion(
            score=self._activation(output.outputs.data.float().item()),
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
            engine_s=engine_s,
            latency_s=latency_s,
        )
