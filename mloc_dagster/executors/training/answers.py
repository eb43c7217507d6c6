"""Answers of a causal language model as it is now: greedy, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mloc_dagster.executors.training.sequences import (
    Speech,
    batched,
    padded,
    prompt_ids,
    token_limit,
)


def greedy_answers(
    model: Any, tokenizer: Any, prompts: Sequence[Speech], max_new_tokens: int
) -> list[str]:
    """Returns the model's answer to each prompt, always of the likeliest tokens.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompts: Texts or messages.
        max_new_tokens: Tokens of an answer at most.

    Raises:
        DataError: If the chat template refuses a prompt.
    """
    import torch
    from transformers import GenerationConfig

    limit = token_limit(model, tokenizer)
    # Half of the positions at least are for the prompt, whatever an answer may take.
    new = max_new_tokens if limit is None else min(max_new_tokens, max(limit // 2, 1))
    room = None if limit is None else limit - new
    ids = [prompt_ids(tokenizer, each, room) for each in prompts]
    ends = _end_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    # Each is set: `generate` takes from the model's own defaults what is not.
    config = GenerationConfig(
        max_new_tokens=new,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        use_cache=True,
        pad_token_id=pad,
        eos_token_id=sorted(ends) or None,
    )
    found: dict[int, str] = {}
    with torch.no_grad():
        for places in batched([len(each) + new for each in ids]):
            batch = padded([ids[place] for place in places], pad, model.device, left=True)
            out = model.generate(**batch, generation_config=config)
            written = out[:, batch["input_ids"].shape[1] :]
            texts = tokenizer.batch_decode(written, skip_special_tokens=True)
            found.update(zip(places, texts, strict=True))
    return [found[place] for place in range(len(prompts))]


def _end_ids(model: Any, tokenizer: Any) -> set[int]:
    config = getattr(model, "generation_config", None)
    given = getattr(config, "eos_token_id", None)
    several = given if isinstance(given, list | tuple) else [given]
    return {each for each in [*several, tokenizer.eos_token_id] if each is not None}
