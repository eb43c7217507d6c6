"""Vectors on transformers: a model without its head, and one vector out of its tokens' states."""

from __future__ import annotations

from typing import Any

from mloc_dagster.executors.engines.pooling import PoolingPlan, fitted_tokens, pooling_plan, scaled
from mloc_dagster.executors.engines.protocol import Completion, EngineRequest, Rendered
from mloc_dagster.executors.engines.transformers.model import max_model_len
from mloc_dagster.executors.engines.transformers.single_pass import (
    LoadedParts,
    SinglePassEngine,
    Text,
    load_parts,
)
from mloc_dagster.executors.model_source import clear_load_errors
from mloc_dagster.executors.prompts import RowBlock, instruction_of, plain_text
from mloc_dagster.results import InputRow
from mloc_dagster.schema import EmbeddingSpec, Pooling


def load_engine(spec: EmbeddingSpec) -> PoolingEngine:
    """Loads a model without its head; see `single_pass.load_parts` for what may go wrong."""
    parts = load_parts(spec, "AutoModel")
    with clear_load_errors(spec.model.source):
        most = max_model_len(spec.model)
        config = parts.model.config
        plan = pooling_plan(parts.place, config, parts.tokenizer, parts.commit, most)
    return PoolingEngine(parts, plan)


class PoolingEngine(SinglePassEngine):
    """Makes vectors with a model that transformers loads.

    Args:
        parts: The model, without a head.
        plan: How it makes vectors when the template does not say.
    """

    def __init__(self, parts: LoadedParts, plan: PoolingPlan) -> None:
        super().__init__(parts)
        self._plan = plan
        if self._model.config.is_encoder_decoder:
            self._model = self._model.get_encoder()

    def render(self, row: InputRow, block: RowBlock) -> Rendered:
        """Puts the instruction before the text; a chat is its messages' texts.

        Raises:
            ValueError: If the row holds more than text.
        """
        return Rendered(f"{instruction_of(block) or ''}{plain_text(row.prompt)}")

    def _readable(self, request: EngineRequest) -> list[int]:
        pooling = request.pooling
        if pooling is None:
            raise ValueError("this engine makes vectors and nothing else")
        width = self._model.config.get_text_config().hidden_size
        if pooling.dimensions is not None and pooling.dimensions > width:
            raise ValueError(f"{pooling.dimensions} dimensions of {self.name}, which has {width}")
        return fitted_tokens(request, self._plan.limit, self._tokenizer, self.name)

    def _answers(self, batch: list[Text]) -> list[Completion]:
        import torch

        ids, mask = self._padded(batch)
        with torch.inference_mode():
            states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            return [
                Completion(embedding=self._pool(states[place, : len(text.tokens)], pooling))
                for place, text in enumerate(batch)
                if (pooling := text.request.pooling) is not None
            ]

    def _pool(self, states: Any, pooling: Pooling) -> list[float]:
        """Returns the vector of one text.

        Args:
            states: Its tokens' last states, [tokens, width].
            pooling: How to make it.
        """
        match pooling.pooling_type or self._plan.pooling_type:
            case "CLS":
                vector = states[0]
            case "LAST":
                vector = states[-1]
            case "MEAN":
                vector = states.float().mean(dim=0)
        return scaled(vector, pooling)
