"""Prompts and answers as token ids, as TRL's trainers build them; scores of a classifier.

Chats go through the chat template. Plain text gets the tokenizer's own special tokens, and its end
token, which an answer has to be followed by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mloc_dagster.errors import DataError

Speech = str | Sequence[Mapping[str, Any]]
"""A prompt or an answer: text, or chat messages."""

_NO_LIMIT = 1_000_000  # tokenizers write a huge number where they know of none
_BATCH_ROWS = 16
_BATCH_TOKENS = 8192  # with 150,000 logits each, 2.4 GB in half precision


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt with an answer.

    Attributes:
        ids: The tokens of both.
        start: Where the answer begins, at 1 or later: no token predicts the first.
        cut: Whether the beginning was left out, for want of positions.
    """

    ids: list[int]
    start: int
    cut: bool = False


Tools = Sequence[Mapping[str, Any]]
"""What the assistant of a chat may call, in OpenAI's form."""


def prompt_ids(
    tokenizer: Any, prompt: Speech, limit: int | None = None, tools: Tools = ()
) -> list[int]:
    """Returns the tokens of a prompt, up to where the answer begins.

    Args:
        tokenizer: The model's.
        prompt: Text or messages.
        limit: Tokens at most; the beginning of a longer one is left out.
        tools: What the assistant is offered.

    Raises:
        DataError: If the chat template refuses the messages.
    """
    if isinstance(prompt, str):
        return _shortened(tokenizer, _encoded(tokenizer, prompt, special=True), limit)
    text = _templated(tokenizer, prompt, tools, opening=True)
    return _shortened(tokenizer, _encoded(tokenizer, text, special=False), limit)


def answered(
    tokenizer: Any,
    prompt: Speech | None,
    answer: Speech,
    limit: int | None = None,
    tools: Tools = (),
) -> TokenSequence:
    """Returns a prompt with an answer; without a prompt everything is the answer.

    Args:
        tokenizer: The model's.
        prompt: Text or messages.
        answer: Text or messages; text after messages is what the assistant says.
        limit: Tokens at most; the beginning of a longer sequence is left out.
        tools: What the assistant is offered.

    Raises:
        DataError: If the chat template refuses the messages.
    """
    if isinstance(prompt, str | None) and isinstance(answer, str):
        ids = _encoded(tokenizer, _ended(tokenizer, (prompt or "") + answer), special=True)
    else:
        chat = [*messages(prompt or [], "user"), *messages(answer, "assistant")]
        ids = _encoded(tokenizer, _templated(tokenizer, chat, tools, opening=False), special=False)
        prompt = messages(prompt, "user") if prompt else None
    start = _shared(prompt_ids(tokenizer, prompt, tools=tools), ids) if prompt else 0
    kept = _shortened(tokenizer, ids, limit)
    lost = len(ids) - len(kept)
    return TokenSequence(kept, max(start - lost, 1), cut=lost > 0)


def messages(speech: Speech, role: str) -> list[Mapping[str, Any]]:
    """Returns messages, or text as the one message of a role."""
    return [{"role": role, "content": speech}] if isinstance(speech, str) else list(speech)


def said(speech: Speech) -> str:
    """Returns an answer as text: of messages, what the assistant says."""
    if isinstance(speech, str):
        return speech
    return "\n".join(str(each["content"]) for each in speech if each["role"] == "assistant")


def token_limit(model: Any, tokenizer: Any) -> int | None:
    """Returns how many tokens a model takes at most; None if nothing says so."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    known = [each for each in (positions, tokenizer.model_max_length) if each is not None]
    return min((int(each) for each in known if 0 < each < _NO_LIMIT), default=None)


def batched(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields places in batches of like length, bounded in rows and in tokens with padding."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda each: (lengths[each], each)):
        # In this order the new one is the longest.
        if batch and (
            len(batch) == _BATCH_ROWS or (len(batch) + 1) * lengths[place] > _BATCH_TOKENS
        ):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def padded(sequences: Sequence[Sequence[int]], pad: int, device: Any, *, left: bool) -> Any:
    """Returns `input_ids` and `attention_mask` of equal length, as keyword arguments."""
    import torch

    width = max(len(each) for each in sequences)
    ids = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, each in enumerate(sequences):
        place = slice(width - len(each), width) if left else slice(0, len(each))
        ids[row, place] = torch.tensor(each, dtype=torch.long)
        mask[row, place] = 1
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def _encoded(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    return list(tokenizer(text, add_special_tokens=special)["input_ids"])


def _templated(tokenizer: Any, chat: Speech, tools: Tools, *, opening: bool) -> str:
    turns = messages(chat, "user")
    # What already ends with words of the assistant is gone on with.
    going_on = opening and turns[-1]["role"] == "assistant"
    try:
        return tokenizer.apply_chat_template(
            turns,
            tools=list(tools) or None,
            tokenize=False,
            add_generation_prompt=opening and not going_on,
            continue_final_message=going_on,
        )
    except Exception as error:  # a template raises what it likes
        raise DataError(f"the model's chat template refuses a row: {error}") from error


def _ended(tokenizer: Any, text: str) -> str:
    # With a class token (BERT and its kin) the tokenizer itself writes both ends.
    end = tokenizer.eos_token if tokenizer.cls_token is None else None
    return text if end is None or text.endswith(end) else text + end


def _shortened(tokenizer: Any, ids: list[int], limit: int | None) -> list[int]:
    """Leaves out the beginning of what is too long, but for a special token that opens it."""
    if limit is None or len(ids) <= limit:
        return ids
    if ids[0] in tokenizer.all_special_ids and limit > 1:
        return [ids[0], *ids[len(ids) - limit + 1 :]]
    return ids[len(ids) - limit :]


def _shared(prompt: Sequence[int], whole: Sequence[int]) -> int:
    """Returns how many tokens both begin with; where they meet, tokens may have merged."""
    for place, (one, other) in enumerate(zip(prompt, whole, strict=False)):
        if one != other:
            return place
    return min(len(prompt), len(whole))


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
