"""Vectors on vLLM: its pooling runner behind the same feed as text."""

from __future__ import annotations

from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.engines.pooling import PoolingPlan, fitted_tokens, pooling_plan, scaled
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Rendered
from mloc_dagster.executors.engines.vllm.engine import CALLS_FIRST, VllmEngine
from mloc_dagster.executors.engines.vllm.process import prepare_environment
from mloc_dagster.executors.engines.vllm.requests import prepare_adapters
from mloc_dagster.executors.engines.vllm.start import EnginePlan, plan_engine
from mloc_dagster.executors.model_source import clear_load_errors
from mloc_dagster.executors.prompts import RowBlock, instruction_of, plain_text
from mloc_dagster.results import InputRow
from mloc_dagster.schema import EmbeddingSpec


def load_engine(spec: EmbeddingSpec) -> VllmPoolingEngine:
    """Starts vLLM's pooling runner with the model of a task.

    Raises:
        MissingExtraError: If vLLM is not installed.
        InputError: If the template wants adapters, which make no vectors.
        TerminalError: If there is no such model, or vLLM refuses it or an argument.
        TransientError: If the hub cannot be reached, or the engine's process ended.
    """
    if spec.model.adapters:
        raise InputError("model.adapters: a task of type 'embedding' has none")
    started = plan_engine(spec, runner="pooling")
    config = read_config(started)
    from vllm.config import PoolerConfig

    with clear_load_errors(started.source):
        revision = started.arguments.get("revision")
        plan = pooling_plan(started.place, config, None, revision)
    if spec.pooling.pooling_type is not None:
        plan = PoolingPlan(spec.pooling.pooling_type, plan.limit)
    started = started.with_arguments(
        pooler_config=PoolerConfig(pooling_type=plan.pooling_type),
        # A text's vector is made of all its tokens' states: none may come out of a cache.
        enable_prefix_caching=False,
    )
    return VllmPoolingEngine(started, prepare_adapters(started, ())[1], plan)


def read_config(plan: EnginePlan) -> Any:
    """Returns what transformers knows of a model before vLLM loads it.

    Raises:
        TerminalError: If there is no such model.
        TransientError: If the hub cannot be reached.
    """
    prepare_environment()
    from transformers import AutoConfig

    with clear_load_errors(plan.source):
        return AutoConfig.from_pretrained(
            plan.place,
            revision=plan.arguments.get("revision"),
            trust_remote_code=plan.arguments["trust_remote_code"],
            local_files_only=plan.source.type != "huggingface",
        )


class VllmPoolingEngine(VllmEngine):
    """A model whose vectors vLLM computes; starts it.

    Args:
        started: How it is started.
        adapters: None of them.
        plan: How it makes vectors.
    """

    def __init__(self, started: Any, adapters: Any, plan: PoolingPlan) -> None:
        super().__init__(started, adapters)
        known = [each for each in (plan.limit, self._max_tokens) if each is not None]
        self._pooling_type = plan.pooling_type
        self._limit = min(known)

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Puts the instruction before the text; a chat is its messages' texts.

        Raises:
            ValueError: If the row holds more than text.
        """
        return Rendered(f"{instruction_of(block) or ''}{plain_text(row.prompt)}")

    def add(self, request_id: str, request: EngineRequest) -> None:
        """Hands a text to vLLM.

        Raises:
            ValueError: If it cannot be embedded.
        """
        from vllm import PoolingParams
        from vllm.inputs.engine import tokens_input

        pooling = request.pooling
        if pooling is None:
            raise ValueError("this engine makes vectors and generates no text")
        if pooling.pooling_type not in (None, self._pooling_type):
            raise ValueError(
                f"pooling_type {pooling.pooling_type} for one row: vLLM pools the whole task by "
                f"{self._pooling_type}"
            )
        width = self.llm.model_config.get_hidden_size()
        if pooling.dimensions is not None and pooling.dimensions > width:
            raise ValueError(f"{pooling.dimensions} dimensions of {self.name}, which has {width}")
        tokens = fitted_tokens(request, self._limit, self._tokenizer, self.name)
        # Raw states: cutting and scaling are done here, for any model and as transformers does.
        params = PoolingParams(task="embed", use_activation=False)
        priority = CALLS_FIRST if request.urgent else 0
        self.llm.add_request(request_id, tokens_input(tokens), params, priority=priority)

    def completion(
        self, request: EngineRequest, output: Any, *, engine_s: float, latency_s: float
    ) -> Completion:
        """Returns a finished output as a completion.

        Raises:
            ValueError: If vLLM gave it up.
        """
        if request.pooling is None or output.outputs is None:
            raise ValueError("vLLM gave this row up")
        return Completion(
            embedding=scaled(output.outputs.data, request.pooling),
            prompt_tokens=len(output.prompt_token_ids),
            cached_tokens=output.num_cached_tokens or 0,
            engine_s=engine_s,
            latency_s=latency_s,
        )
