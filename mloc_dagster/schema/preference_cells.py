"""Two answers to one prompt: telling apart what they share and what each adds."""

from __future__ import annotations

from mloc_dagster.schema.training_cells import Messages, Speech

Preferred = tuple[Speech | None, Speech, Speech]
"""Prompt, chosen and rejected; without a prompt the two hold it themselves."""


def compared(prompt: Speech | None, chosen: Speech, rejected: Speech) -> Preferred:
    """Returns prompt and answers, where messages that both begin with belong to the prompt.

    Datasets repeat the prompt in both answers, with or without a column of its own. Texts are left
    as they are: where one answer begins cannot be told from texts alone.

    Raises:
        ValueError: If they are not two different answers to one prompt.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise ValueError("one of chosen and rejected is text, the other chat messages")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same")
    if isinstance(chosen, str) or isinstance(rejected, str):
        return prompt, chosen, rejected
    shared = _shared(chosen, rejected)
    if len(shared) in (len(chosen), len(rejected)):
        raise ValueError("one of chosen and rejected is only the beginning of the other")
    start = len(shared)
    return _whole_prompt(prompt, shared), chosen[start:], rejected[start:]


def _shared(chosen: Messages, rejected: Messages) -> Messages:
    shared: Messages = []
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        shared.append(one)
    return shared


def _whole_prompt(prompt: Speech | None, shared: Messages) -> Speech | None:
    if not shared:
        return prompt
    if prompt is None or _repeats(shared, prompt):
        return shared
    if shared[0]["role"] != "assistant":
        raise ValueError("chosen and rejected begin with messages that are not the prompt's")
    own: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return [*own, *shared]


def _repeats(shared: Messages, prompt: Speech) -> bool:
    if not isinstance(prompt, str):
        return shared[: len(prompt)] == prompt
    return any(
        message["role"] == "user" and str(message["content"]).strip() == prompt.strip()
        for message in shared
    )
