"""Generating the answers of one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mloc_dagster.executors.batches import Slot
from mloc_dagster.executors.engine import Answer
from mloc_dagster.executors.guided import GrammarMask
from mloc_dagster.executors.sampling import logits_processors
from mloc_dagster.executors.stopping import StopStrings, StopWhenCancelled, cut_at_stop
from mloc_dagster.executors.token_logprobs import LogprobRecorder
from mloc_dagster.executors.transformers_model import LoadedModel
from mloc_dagster.executors.transformers_vision import batch_pixels
from mloc_dagster.results.rows import TokenLogprob
from mloc_dagster.schema.inference import Inference


def generate(
    loaded: LoadedModel,
    inference: Inference,
    batch: Sequence[Slot],
    cancelled: Callable[[], bool],
) -> list[Answer]:
    """Generates one answer for each slot of a batch that `make_batches` made.

    Raises:
        TaskCancelled: As soon as `cancelled` says so; the batch is lost.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

    final = sorted(_final_token_ids(loaded, inference))
    width = max(len(each.tokens) for each in batch)
    ids, mask = _left_padded(batch, width, loaded.pad_token_id, loaded.model.device)
    answers = [(each.request.seed, each.answer) for each in batch]
    stop_strings = StopStrings(
        inference.stop, _decoder(loaded, inference), width=width, least=inference.min_tokens
    )
    looks: list[Any] = [StopWhenCancelled(cancelled)]
    if inference.stop:
        looks.append(stop_strings)
    processors: list[Any] = []
    if any(each.grammar is not None for each in batch):
        processors.append(GrammarMask([each.grammar for each in batch], final, width))
    recorder = None if inference.logprobs is None else LogprobRecorder(inference.logprobs)
    if recorder is not None:
        processors.append(recorder)
        looks.append(recorder.look)
    processors += logits_processors(inference, answers, mask, final)
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=batch[0].room,
        eos_token_id=final or None,
        pad_token_id=loaded.pad_token_id,
    )
    loaded.adapters.activate(batch[0].request.adapter)
    with torch.inference_mode():
        output = loaded.model.generate(
            input_ids=ids,
            attention_mask=mask,
            **batch_pixels([each.pixels for each in batch], loaded.model.device),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList(looks),
        )
    lists = output[:, width:].tolist()
    ended_at = stop_strings.ended_at or [None] * len(lists)
    kept = _kept(lists, ended_at, frozenset(final))
    texts = _texts(loaded, inference, [tokens for tokens, _ in kept], frozenset(final))
    logprobs: Sequence[list[TokenLogprob] | None] = [None] * len(kept)
    if recorder is not None:
        logprobs = recorder.read([tokens for tokens, _ in kept], loaded.tokenizer)
    return [
        Answer(text, "stop" if ended or cut else "length", len(tokens), likelihoods)
        for (tokens, ended), (text, cut), likelihoods in zip(kept, texts, logprobs, strict=True)
    ]


def _kept(
    lists: list[list[int]], ended_at: Sequence[int | None], final: frozenset[int]
) -> list[tuple[list[int], bool]]:
    """Returns each answer's tokens up to what ended it, and whether anything did."""
    lengths = [
        next((place + 1 for place, token in enumerate(tokens[:ended]) if token in final), ended)
        for tokens, ended in zip(lists, ended_at, strict=True)
    ]
    return [
        (tokens[:length], length is not None) for tokens, length in zip(lists, lengths, strict=True)
    ]


def _texts(
    loaded: LoadedModel, inference: Inference, answers: list[list[int]], final: frozenset[int]
) -> list[tuple[str, bool]]:
    """Returns each answer's text before what ended it, and whether a stop string did."""
    decode = _decoder(loaded, inference)
    texts = decode(
        [tokens[:-1] if tokens and tokens[-1] in final else tokens for tokens in answers]
    )
    starts = [0] * len(texts)
    if inference.stop and inference.min_tokens:
        starts = [len(text) for text in decode([one[: inference.min_tokens] for one in answers])]
    return [
        cut_at_stop(text, inference.stop, start) for text, start in zip(texts, starts, strict=True)
    ]


def _final_token_ids(loaded: LoadedModel, inference: Inference) -> set[int]:
    eos = frozenset[int]() if inference.ignore_eos else loaded.eos_token_ids
    return {*eos, *inference.stop_token_ids}


def _left_padded(batch: Sequence[Slot], width: int, pad: int, device: Any) -> tuple[Any, Any]:
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
