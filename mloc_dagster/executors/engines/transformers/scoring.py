"""Scores on transformers: a cross-encoder reads two texts together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.executors.engines.pooling import most_tokens
from mloc_dagster.executors.engines.protocol import (
    Completion,
    EngineRequest,
    PairTokens,
    Rendered,
)
from mloc_dagster.executors.engines.scoring import Activation, activation_of, tokenize_pairs
from mloc_dagster.executors.engines.transformers.model import max_model_len
from mloc_dagster.executors.engines.transformers.single_pass import (
    LoadedParts,
    SinglePassEngine,
    Text,
    load_parts,
)
from mloc_dagster.executors.prompts import RowBlock, plain_text
from mloc_dagster.results import InputRow
from mloc_dagster.schema import ModelSpec


def load_engine(spec: ModelSpec) -> CrossEncoderEngine:
    """Loads a cross-encoder; see `single_pass.load_parts` for what may go wrong.

    Raises:
        TerminalError: If the model scores no pairs.
    """
    found: list[Activation] = []
    name = spec.model.source.identifier
    parts = load_parts(
        spec,
        "AutoModelForSequenceClassification",
        lambda config: found.append(activation_of(config, name)),
    )
    limit = most_tokens(parts.model.config, parts.tokenizer, max_model_len(spec.model))
    return CrossEncoderEngine(parts, found[0], limit)


class CrossEncoderEngine(SinglePassEngine):
    """Scores pairs of texts with a model that transformers loads.

    Args:
        parts: The model.
        activation: Makes a score of its logit.
        limit: Tokens that it reads at most; None without a limit.
    """

    def __init__(self, parts: LoadedParts, activation: Activation, limit: int | None) -> None:
        super().__init__(parts)
        self._activation = activation
        self._limit = limit
        config = self._model.config.get_text_config()
        if config.pad_token_id is None:  # by which a decoder finds each text's last token
            config.pad_token_id = self._pad

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

    def _readable(self, request: EngineRequest) -> list[int]:
        if request.rendered.pair is None:
            raise ValueError("this engine scores pairs of texts and does nothing else")
        return request.tokens

    def _answers(self, batch: list[Text]) -> list[Completion]:
        import torch

        ids, mask = self._padded(batch)
        more: dict[str, Any] = {}
        if any(text.request.second for text in batch):
            # What is padding, the attention mask says: of which text it is counts for nothing.
            starts = [text.request.second or ids.shape[1] for text in batch]
            begins = torch.tensor(starts, device=ids.device)
            places = torch.arange(ids.shape[1], device=ids.device)
            more["token_type_ids"] = (places >= begins[:, None]).long()
        with torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, **more).logits
        scores = logits.float()[:, 0].tolist()
        return [Completion(score=self._activation(each)) for each in scores]
