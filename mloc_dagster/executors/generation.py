"""Generating the answers of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.executors.batches import Request
from mloc_dagster.executors.sampling import logits_processors
from mloc_dagster.executors.stopping import StopStrings, StopWhenCancelled, cut_at_stop
from mloc_dagster.executors.transformers_model import LoadedModel
from mloc_dagster.schema.inference import Inference


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated text.

    Attributes:
        text: Without what ended it.
        finish_reason: `stop` or `length`.
        tokens: How many tokens were generated, the ending one included.
    """

    text: str
    finish_reason: str
    tokens: int


def generate(
    loaded: LoadedModel,
    inference: Inference,
    seed: int,
    batch: Sequence[Request],
    cancelled: Callable[[], bool],
) -> list[Answer]:
    """Generates one answer for each request; all must have the same `room`.

    Raises:
        TaskCancelled: As soon as `cancelled` says so; the batch is lost.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    final = sorted(_final_token_ids(loaded, inference))
    width = max(len(each.tokens) for each in batch)
    ids, mask = _left_padded(batch, width, loaded.pad_token_id, loaded.model.device)
    answers = [(each.row.index, each.answer) for each in batch]
    stop_strings = StopStrings(
        inference.stop, _decoder(loaded, inference), width=width, least=inference.min_tokens
    )
    looks: list[Any] = [StopWhenCancelled(cancelled)]
    if inference.stop:
        looks.append(stop_strings)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=batch[0].room,
        eos_token_id=final or None,
        pad_token_id=loaded.pad_token_id,
    )
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList(
                logits_processors(inference, seed, answers, mask, final)
            ),
            stopping_criteria=StoppingCriteriaList(looks),
        )
    lists = output[:, width:].tolist()
    ended_at = stop_strings.ended_at or [None] * len(lists)
    return _finish(loaded, inference, lists, ended_at, frozenset(final))


def _finish(
    loaded: LoadedModel,
    inference: Inference,
    lists: list[list[int]],
    ended_at: Sequence[int | None],
    final: frozenset[int],
) -> list[Answer]:
    """Turns token ids into answers: cuts what ended each, and all behind it."""
    lengths = [
        next((place + 1 for place, token in enumerate(tokens[:ended]) if token in final), ended)
        for tokens, ended in zip(lists, ended_at, strict=True)
    ]
    kept = [
        (tokens[:length], length is not None) for tokens, length in zip(lists, lengths, strict=True)
    ]
    decode = _decoder(loaded, inference)
    texts = decode(
        [tokens[:-1] if tokens and tokens[-1] in final else tokens for tokens, _ in kept]
    )
    starts = [0] * len(texts)
    if inference.stop and inference.min_tokens:
        starts = [len(text) for text in decode([one[: inference.min_tokens] for one, _ in kept])]
    answers: list[Answer] = []
    for (tokens, ended), text, start in zip(kept, texts, starts, strict=True):
        text, cut = cut_at_stop(text, inference.stop, start)
        answers.append(Answer(text, "stop" if ended or cut else "length", len(tokens)))
    return answers


def _final_token_ids(loaded: LoadedModel, inference: Inference) -> set[int]:
    eos = frozenset[int]() if inference.ignore_eos else loaded.eos_token_ids
    return {*eos, *inference.stop_token_ids}


def _left_padded(batch: Sequence[Request], width: int, pad: int, device: Any) -> tuple[Any, Any]:
    import torch

    gaps = [width - len(each.tokens) for each in batch]
    ids = [[pad] * gap + each.tokens for gap, each in zip(gaps, batch, strict=True)]
    mask = torch.arange(width)[None, :] >= torch.tensor(gaps)[:, None]
    return torch.tensor(ids).to(device), mask.to(device, torch.long)


def _decoder(loaded: LoadedModel, inference: Inference) -> Callable[[Any], list[str]]:
    def decode(lists: list[list[int]]) -> list[str]:
        return loaded.tokenizer.batch_decode(
            lists,
            skip_special_tokens=inference.skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )

    return decode
