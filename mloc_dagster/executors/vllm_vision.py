"""Models that see, under vLLM: their chat template, and prompts with pictures."""

from __future__ import annotations

from typing import Any

from mloc_dagster.errors import InputError
from mloc_dagster.executors.engine import Rendered


def sees(llm: Any) -> bool:
    """Tells whether vLLM's engine `llm` runs a model that takes more than text."""
    return llm.model_config.is_multimodal_model


def processor_template(llm: Any) -> str | None:
    """Returns the chat template that only the model's processor has; None where there is none.

    It cannot be set on vLLM's tokenizer, which renders with copies of itself.
    """
    if not sees(llm) or llm.get_tokenizer().chat_template:
        return None
    from vllm.transformers_utils.processor import cached_processor_from_config

    return getattr(cached_processor_from_config(llm.model_config), "chat_template", None)


def picture_prompt(llm: Any, rendered: Rendered) -> Any:
    """Returns what vLLM takes as the prompt of a row with pictures.

    Raises:
        ValueError: If the model takes none, or not these.
    """
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    prompt = {
        "prompt": rendered.text,
        "multi_modal_data": {"image": list(rendered.images)},
        "multi_modal_uuids": {"image": list(rendered.image_ids)},
    }
    renderer = llm.renderer
    options = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=rendered.special)
    return renderer.render_cmpl([parse_model_prompt(llm.model_config, prompt)], options)[0]


def refuse_merging(place: str, **common: Any) -> None:
    """Raises for a model that sees: merged, it has names for its weights that vLLM cannot read.

    Args:
        place: The hub's id, or a folder.
        common: What `from_pretrained` is to know.

    Raises:
        InputError: If the model has a vision tower.
    """
    from transformers import AutoConfig

    if getattr(AutoConfig.from_pretrained(place, **common), "vision_config", None) is not None:
        raise InputError(
            f"model.adapters: under vLLM no adapter can be merged into {place!r}, a model that "
            "sees: give it one adapter, or `apply: request`, or use `engine: transformers`"
        )
