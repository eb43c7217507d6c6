"""What a sequence classifier makes of texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.executors.training.sequences import batched, padded


def class_logits(model: Any, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    """Returns the logits of each sequence of tokens; gradients are not kept.

    Without a pad token rows go one by one: the classifier could not tell where each ends.
    """
    import torch

    pad = getattr(model.config.get_text_config(), "pad_token_id", None)
    lengths = [len(each) for each in sequences]
    batches = batched(lengths) if pad is not None else ([place] for place in range(len(lengths)))
    found: dict[int, list[float]] = {}
    with torch.no_grad():
        for places in batches:
            batch = [sequences[place] for place in places]
            given = padded(batch, pad or 0, model.device, left=False)
            logits = model(**given).logits.float().tolist()
            found.update(zip(places, logits, strict=True))
    return [found[place] for place in range(len(sequences))]


def is_classifier(model: Any) -> bool:
    """Tells whether a model, with or without an adapter, classifies and does not write."""
    unwrapped = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(unwrapped).__name__.endswith("ForSequenceClassification")
