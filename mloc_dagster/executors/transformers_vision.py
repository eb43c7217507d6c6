"""Models that see, on the transformers engine: which they are, and what a batch of images is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mloc_dagster.executors.engine import EngineRequest

Pixels = Mapping[str, Any]
"""What a processor makes of a row's images, by the name that the model has for it."""


def model_class(place: str, common: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns the class that loads a model, and its processor; None where it reads text only.

    Args:
        place: The hub's id, or a folder.
        common: What every `from_pretrained` is to know.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    config = AutoConfig.from_pretrained(place, **common)
    sees = getattr(config, "vision_config", None) is not None
    if not sees or type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForCausalLM, None
    return AutoModelForImageTextToText, AutoProcessor.from_pretrained(place, **common)


def take_chat_template(tokenizer: Any, processor: Any) -> None:
    """Gives a tokenizer that has no chat template the one that lies with the model's processor."""
    if not tokenizer.chat_template:
        tokenizer.chat_template = getattr(processor, "chat_template", None)


def with_pixels(processor: Any, request: EngineRequest) -> tuple[EngineRequest, Pixels]:
    """Returns a request with the tokens that its images take, and the images as tensors.

    Raises:
        ValueError: If the processor refuses the row.
    """
    rendered = request.rendered
    if not rendered.images:
        return request, {}
    try:
        made = processor(
            text=[rendered.text],
            images=list(rendered.images),
            return_tensors="pt",
            add_special_tokens=rendered.special,
        )
    except Exception as error:  # each processor raises what it likes
        raise ValueError(f"the model's processor refuses this row: {error}") from error
    tokens = made.pop("input_ids")[0].tolist()
    made.pop("attention_mask", None)
    return replace(request, tokens=tokens), dict(made)


def batch_pixels(rows: Sequence[Pixels], device: Any) -> dict[str, Any]:
    """Joins the images of a batch's rows, in the rows' order."""
    import torch

    names = {name: None for row in rows for name in row}
    return {
        name: torch.cat([row[name] for row in rows if name in row]).to(device) for name in names
    }
